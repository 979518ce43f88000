//! The network configuration a runtime hands over on standard input (CNI specification, section 1 and "Execution"), checked.
//!
//! As `shim/cni/config.py`: each part is checked when it is asked for, so that a DEL does not fail by what only ADD uses.
//! What a Pod wishes (capabilities, args) is in wishes.rs.

use std::time::Duration;

use serde_json::{Map, Value};

use crate::contract::AttachmentKey;
use crate::document;
use crate::errors::{CniError, DECODE, VERSION};
use crate::router;
use crate::text::{as_float, is_integer, is_printable, is_space, repr, repr_value};

pub const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];
pub const NEWEST: &str = VERSIONS[3];
pub const MOST_BYTES: usize = 16 << 20;

const SINCE: [(&str, &str); 3] = [("CHECK", "0.4.0"), ("STATUS", "1.1.0"), ("GC", "1.1.0")];
/// The specification's key, and the one libcni once wrote.
const VALID_ATTACHMENTS: [&str; 2] = ["cni.dev/valid-attachments", "cni.dev/attachments"];
const MOST_NAME_CHARACTERS: usize = 60;
const MOST_WAIT_S: f64 = 600.0;

pub type Object = Map<String, Value>;

/// A network configuration.
pub struct Config {
    found: Object,
}

impl Config {
    /// Read what came on standard input; an error of DECODE when it is no JSON object.
    pub fn new(content: &[u8]) -> Result<Config, CniError> {
        if content.len() > MOST_BYTES {
            let why = format!("the network configuration has more than {MOST_BYTES} bytes");
            return Err(CniError::new(DECODE, why));
        }
        match document::read(content) {
            Ok(Value::Object(found)) => Ok(Config { found }),
            Ok(_) => {
                let why = "the network configuration on standard input is no JSON object";
                Err(CniError::new(DECODE, why))
            }
            Err(error) => {
                let why = format!("the network configuration on standard input is no JSON: {error}");
                Err(CniError::new(DECODE, why))
            }
        }
    }

    pub fn get(&self, name: &str) -> &Value {
        self.found.get(name).unwrap_or(&Value::Null)
    }

    /// Return the version of the specification it speaks; 0.1.0 where it says none, which is not spoken here.
    pub fn version(&self) -> Result<&str, CniError> {
        self.text_or("cniVersion", "0.1.0")
    }

    /// Return an error of VERSION when a verb cannot be done in this version.
    pub fn check_version(&self, command: &str) -> Result<(), CniError> {
        let version = self.version()?;
        let Some(at) = place(version) else {
            let spoken = format!("podwire-cni speaks {}", VERSIONS.join(", "));
            let said = format!("incompatible CNI version: the configuration says {}; {spoken}", repr(version));
            return Err(CniError::new(VERSION, said));
        };
        match SINCE.iter().find(|(verb, _)| *verb == command) {
            Some((_, least)) if place(least) > Some(at) => {
                let said = format!("{command} came with CNI {least}; the configuration says {}", repr(version));
                Err(CniError::new(VERSION, said))
            }
            _ => Ok(()),
        }
    }

    /// Return whose the network's attachments are, in the router's books: "cni:" and the network's name.
    pub fn owner(&self) -> Result<String, CniError> {
        let found = self.text_or("name", "")?;
        let odd = |c: char| !is_printable(c) || is_space(c);
        if found.is_empty() || found.contains(odd) || found.chars().count() > MOST_NAME_CHARACTERS {
            let why = format!("give the network a name of 1 to {MOST_NAME_CHARACTERS} characters without whitespace");
            return Err(CniError::config(format!("name {}: {why}", repr(found))));
        }
        Ok(format!("cni:{found}"))
    }

    /// Return where the router listens.
    pub fn socket_path(&self) -> Result<&str, CniError> {
        let found = self.text_or("socket", router::DEFAULT_SOCKET)?;
        // A NUL would end it somewhere else.
        if !found.starts_with('/') || !found.chars().all(is_printable) {
            let why = "give the absolute path of the router's socket";
            return Err(CniError::config(format!("socket {}: {why}", repr(found))));
        }
        Ok(found)
    }

    /// Return how long ADD waits for a router that restarts.
    pub fn wait(&self) -> Result<Duration, CniError> {
        match self.found.get("wait_s") {
            None => Ok(router::WAIT),
            Some(Value::Number(found)) if (0.0..=MOST_WAIT_S).contains(&as_float(found)) => {
                Ok(Duration::from_secs_f64(as_float(found)))
            }
            Some(found) => Err(CniError::config(format!("wait_s {}: give seconds, 0 to 600", repr_value(found)))),
        }
    }

    /// Return the MTU of the interface; 0 for the overlay's.
    pub fn mtu_bytes(&self) -> Result<u32, CniError> {
        Ok(self.found.get("mtu").map_or(Ok(0), |found| number(found, "mtu", 65535))? as u32)
    }

    /// Return the result of the plugin before, or of ADD; None where there was none.
    pub fn previous(&self) -> Result<Option<&Object>, CniError> {
        let found = match self.get("prevResult") {
            Value::Null => return Ok(None),
            Value::Object(found) => found,
            _ => return Err(CniError::config("prevResult is no object")),
        };
        for name in ["interfaces", "ips", "routes"] {
            if let Some(listed) = found.get(name)
                && is_true(listed)
                && objects(listed).is_none()
            {
                let why = format!("prevResult.{name} {}: it must be a list of objects", repr_value(listed));
                return Err(CniError::config(why));
            }
        }
        object(found.get("dns").unwrap_or(&Value::Null), "prevResult.dns")?;
        Ok(Some(found))
    }

    /// Return what GC is to leave alone. An error when it is not said: then everything would go.
    pub fn valid_attachments(&self) -> Result<Vec<AttachmentKey>, CniError> {
        for name in VALID_ATTACHMENTS {
            let found = self.get(name);
            if found.is_null() {
                continue;
            }
            let Some(listed) = objects(found) else {
                return Err(CniError::config(format!(r#"{name}: give a list of {{"containerID": …, "ifname": …}}"#)));
            };
            let key = |each: &Object| {
                let part = |field: &str| {
                    let value = each.get(field).unwrap_or(&Value::Null);
                    Ok::<_, CniError>(text(value, &format!("{name}: {field}"))?.to_owned())
                };
                Ok(AttachmentKey { sandbox_id: part("containerID")?, if_name: part("ifname")? })
            };
            return listed.into_iter().map(key).collect();
        }
        let names = VALID_ATTACHMENTS.join(" or ");
        Err(CniError::config(format!("GC without {names} would release everything: give the list")))
    }

    fn text_or<'a>(&'a self, name: &str, otherwise: &'a str) -> Result<&'a str, CniError> {
        self.found.get(name).map_or(Ok(otherwise), |found| text(found, name))
    }
}

/// Return where a version stands among those spoken.
pub fn place(version: &str) -> Option<usize> {
    VERSIONS.iter().position(|each| *each == version)
}

/// Tell whether a value is something, as Python's truth has it.
pub fn is_true(found: &Value) -> bool {
    match found {
        Value::Null => false,
        Value::Bool(found) => *found,
        Value::Number(found) => as_float(found) != 0.0,
        Value::String(found) => !found.is_empty(),
        Value::Array(found) => !found.is_empty(),
        Value::Object(found) => !found.is_empty(),
    }
}

/// Return the objects of a list of objects; None when it is none.
pub fn objects(found: &Value) -> Option<Vec<&Object>> {
    found.as_array()?.iter().map(Value::as_object).collect()
}

/// Return an object, None for null. CniError for anything else.
pub fn object<'a>(found: &'a Value, name: &str) -> Result<Option<&'a Object>, CniError> {
    match found {
        Value::Null => Ok(None),
        Value::Object(found) => Ok(Some(found)),
        _ => Err(CniError::config(format!("{name} {}: give an object", repr_value(found)))),
    }
}

/// Return a text. CniError for anything else.
pub fn text<'a>(found: &'a Value, name: &str) -> Result<&'a str, CniError> {
    found.as_str().ok_or_else(|| CniError::config(format!("{name} {}: give a text", repr_value(found))))
}

/// Return a whole number of limited size. CniError for anything else.
pub fn number(found: &Value, name: &str, most: u64) -> Result<u64, CniError> {
    let whole = match found {
        Value::Number(found) if is_integer(found) => found.to_string().parse::<i128>().ok(),
        _ => None,
    };
    match whole.and_then(|found| u64::try_from(found).ok()) {
        Some(found) if found <= most => Ok(found),
        _ => {
            let why = format!("{name} {}: give a whole number from 0 to {most}", repr_value(found));
            Err(CniError::config(why))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> Config {
        Config::new(json.as_bytes()).unwrap()
    }

    #[test]
    fn versions_are_looked_at_by_verb() {
        assert!(config(r#"{"cniVersion": "0.3.1"}"#).check_version("ADD").is_ok());
        assert_eq!(config(r#"{"cniVersion": "0.3.1"}"#).check_version("CHECK").unwrap_err().code, VERSION);
        assert_eq!(config("{}").check_version("ADD").unwrap_err().code, VERSION);
        assert_eq!(config(r#"{"cniVersion": null}"#).version().unwrap_err().message, "cniVersion None: give a text");
    }

    #[test]
    fn numbers_have_bounds() {
        assert_eq!(config(r#"{"mtu": 1400}"#).mtu_bytes(), Ok(1400));
        for (json, shown) in [("-1", "-1"), ("true", "True"), ("1.0", "1.0"), ("1e99", "1e+99"), ("70000", "70000")] {
            let error = config(&format!(r#"{{"mtu": {json}}}"#)).mtu_bytes().unwrap_err();
            assert_eq!(error.message, format!("mtu {shown}: give a whole number from 0 to 65535"));
        }
        assert_eq!(config(r#"{"wait_s": 0.5}"#).wait(), Ok(Duration::from_millis(500)));
        assert!(config(r#"{"wait_s": 1e999}"#).wait().unwrap_err().message.starts_with("wait_s inf"));
    }

    #[test]
    fn what_gc_keeps_is_said() {
        let found = config(r#"{"cni.dev/attachments": [{"containerID": "a", "ifname": "eth0"}]}"#).valid_attachments();
        assert_eq!(found.unwrap(), [AttachmentKey { sandbox_id: "a".into(), if_name: "eth0".into() }]);
        assert!(config("{}").valid_attachments().is_err());
        assert!(config(r#"{"cni.dev/valid-attachments": [{}]}"#).valid_attachments().is_err());
    }
}

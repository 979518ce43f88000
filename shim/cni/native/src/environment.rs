//! What a runtime says in the environment (CNI specification, "Parameters"), checked. As `shim/cni/environment.py`.

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;

use crate::errors::{CniError, ENVIRONMENT};
use crate::text;

/// IFNAMSIZ - 1, linux/if.h.
const IF_NAME_BYTES: usize = 15;
const MOST_ID_CHARACTERS: usize = 256;

/// CNI_COMMAND and what belongs to it; what the verb does not need is not looked at.
pub struct Environment {
    pub command: String,
    read: fn(&str) -> String,
}

impl Environment {
    pub fn read() -> Result<Environment, CniError> {
        Environment::new(|name| text::from_bytes(std::env::var_os(name).unwrap_or_default().as_bytes()))
    }

    fn new(read: fn(&str) -> String) -> Result<Environment, CniError> {
        let mut found = Environment { command: String::new(), read };
        found.command = found.need("CNI_COMMAND")?;
        Ok(found)
    }

    /// Return the sandbox.
    pub fn container_id(&self) -> Result<String, CniError> {
        let found = self.need("CNI_CONTAINERID")?;
        let plain = found.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
        if !plain || !found.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            let why = r#"use a letter or digit, then letters, digits, "_", "." and "-""#;
            return Err(bad("CNI_CONTAINERID", &found, why));
        }
        if found.len() > MOST_ID_CHARACTERS {
            let why = format!("it is longer than {MOST_ID_CHARACTERS} characters");
            return Err(bad("CNI_CONTAINERID", &format!("{}…", &found[..80]), &why));
        }
        Ok(found)
    }

    /// Return the interface in the sandbox.
    pub fn if_name(&self) -> Result<String, CniError> {
        let found = self.need("CNI_IFNAME")?;
        if text::byte_count(&found) > IF_NAME_BYTES {
            return Err(bad("CNI_IFNAME", &found, &format!("it is longer than {IF_NAME_BYTES} bytes")));
        }
        let odd = |c: char| "/:".contains(c) || text::is_space(c) || !text::is_printable(c);
        if found == "." || found == ".." || found.contains(odd) {
            let why = r#"it is no name of an interface: use one like "eth0""#;
            return Err(bad("CNI_IFNAME", &found, why));
        }
        Ok(found)
    }

    /// Return the path of the sandbox's network namespace.
    pub fn netns_path(&self) -> Result<String, CniError> {
        let found = self.need("CNI_NETNS")?;
        if !found.starts_with('/') {
            return Err(bad("CNI_NETNS", &found, "it must be an absolute path"));
        }
        if !text::is_unicode(&found) {
            return Err(bad("CNI_NETNS", &found, "the router takes paths in UTF-8"));
        }
        Ok(found)
    }

    /// Return what CNI_ARGS holds, "KEY=VALUE;KEY=VALUE".
    pub fn arguments(&self) -> Result<HashMap<String, String>, CniError> {
        let mut found = HashMap::new();
        for pair in (self.read)("CNI_ARGS").split(';') {
            if !text::is_unicode(pair) {
                return Err(bad("CNI_ARGS", pair, "write it in UTF-8"));
            }
            match pair.trim_matches(text::is_space).split_once('=') {
                Some((key, value)) => drop(found.insert(key.to_owned(), value.to_owned())),
                None if pair.chars().all(text::is_space) => (),
                None => return Err(bad("CNI_ARGS", pair, "write KEY=VALUE, with ; between them")),
            }
        }
        Ok(found)
    }

    fn need(&self, name: &str) -> Result<String, CniError> {
        let found = (self.read)(name);
        if found.is_empty() {
            let why = format!("{name} is not set; a CNI plugin is run by a container runtime, see its --help");
            return Err(CniError::new(ENVIRONMENT, why));
        }
        Ok(found)
    }
}

fn bad(name: &str, value: &str, why: &str) -> CniError {
    CniError::new(ENVIRONMENT, format!("{name} {}: {why}", text::repr(value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_pairs() {
        let environment = Environment::new(|name| match name {
            "CNI_ARGS" => " A=1 ;B=2=3;; =x;K8S_POD_NAME=".to_owned(),
            _ => "ADD".to_owned(),
        });
        let found = environment.unwrap().arguments().unwrap();
        let wanted = [("A", "1"), ("B", "2=3"), ("", "x"), ("K8S_POD_NAME", "")];
        assert_eq!(found, wanted.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
    }

    #[test]
    fn names_are_measured_in_bytes() {
        let named = |read| Environment::new(read).unwrap().if_name();
        assert!(named(|_| "fifteen-letters".to_owned()).is_ok());
        assert!(named(|_| "äääääääx".to_owned()).is_ok());
        assert!(named(|_| "ääääääää".to_owned()).unwrap_err().message.contains("15 bytes"));
        assert!(named(|_| text::from_bytes(b"eth\xff")).unwrap_err().message.contains("'eth\\udcff'"));
    }
}

//! What a Pod asks for: the capabilities of `runtimeConfig` (CNI conventions) and `args.cni`, as the router takes them.
//!
//! As in `shim/cni/config.py`. Keys of a capability are taken in any case, as Go's decoder takes them: containerd says HostPort.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::config::{Config, Object, is_true, number, object, objects, text};
use crate::contract::{Limits, PortMapping};
use crate::errors::{CniError, FIELD};
use crate::text::repr_value;

/// Capabilities that this plugin does not have: to be told so is better than an address out of range.
const UNSERVED: [&str; 2] = ["ipRanges", "aliases"];

impl Config {
    /// Return an error for what this plugin is asked in vain.
    pub fn check_own(&self) -> Result<(), CniError> {
        if is_true(self.get("ipam")) {
            return Err(CniError::config("ipam: the router hands the addresses out; take the section away"));
        }
        for name in UNSERVED {
            let asked = self.runtime(name)?;
            if is_true(&asked) {
                let why = "podwire-cni does not have this capability; take it out of the configuration's capabilities";
                return Err(CniError::new(FIELD, format!("runtimeConfig.{name} {}: {why}", repr_value(&asked))));
            }
        }
        Ok(())
    }

    /// Return the addresses asked for by the capability `ips` or by args.cni.ips, without a prefix length.
    pub fn addresses(&self) -> Result<Vec<String>, CniError> {
        let asked = self.runtime_or_argument("ips", json!([]))?;
        let listed = texts(&asked).ok_or_else(|| wrong("ips", &asked, "give a list of addresses"))?;
        Ok(listed.into_iter().map(without_length).collect())
    }

    /// Return the hardware address asked for; empty for none.
    pub fn mac(&self) -> Result<String, CniError> {
        Ok(text(&self.runtime_or_argument("mac", json!(""))?, "mac")?.to_owned())
    }

    /// Return the labels of args.cni.labels.
    pub fn labels(&self) -> Result<BTreeMap<String, String>, CniError> {
        let nothing = json!([]);
        let asked = Some(self.argument("labels")?).filter(|each| is_true(each)).unwrap_or(&nothing);
        let listed =
            objects(asked).ok_or_else(|| wrong("labels", asked, r#"give a list of {"key": …, "value": …}"#))?;
        let mut found = BTreeMap::new();
        for each in listed {
            let key = text(each.get("key").unwrap_or(&Value::Null), "labels")?;
            let value = each.get("value").map_or(Ok(""), |value| text(value, "labels"))?;
            found.insert(key.to_owned(), value.to_owned());
        }
        Ok(found)
    }

    /// Return the port mappings of the capability.
    pub fn ports(&self) -> Result<Vec<PortMapping>, CniError> {
        let asked = or(self.runtime("portMappings")?, json!([]));
        let listed = objects(&asked).ok_or_else(|| wrong("portMappings", &asked, "give a list of objects"))?;
        let mut found = Vec::new();
        for each in listed {
            let host = optional_text(each, "hostip", "hostIP")?;
            let port = |field: &str, name: &str| each.get(field).map_or(Ok(0), |value| number(value, name, 65535));
            let (host_port, container_port) = (port("hostport", "hostPort")?, port("containerport", "containerPort")?);
            let protocol = optional_text(each, "protocol", "protocol")?;
            let mapping = PortMapping {
                host_port: host_port as u32,
                container_port: container_port as u32,
                protocol: if protocol.is_empty() { "tcp".to_owned() } else { protocol.to_lowercase() },
                // Any address, in Kubernetes' words.
                host_address: if matches!(host, "0.0.0.0" | "::") { String::new() } else { host.to_owned() },
            };
            // A port without a host port is only a note on the Pod: Kubernetes' runtimes hand it over all the same.
            if mapping.host_port != 0 {
                found.push(mapping);
            }
        }
        Ok(found)
    }

    /// Return the limits of the capability `bandwidth`, in bits; None for none.
    pub fn limits(&self) -> Result<Option<Limits>, CniError> {
        let asked = self.runtime("bandwidth")?;
        if !is_true(&asked) {
            return Ok(None);
        }
        let object = asked.as_object().ok_or_else(|| wrong("bandwidth", &asked, "give an object"))?;
        let limit = |name: &str| match object.get(&name.to_lowercase()) {
            Some(value) if is_true(value) => number(value, &format!("bandwidth.{name}"), i64::MAX as u64),
            _ => Ok(0),
        };
        Ok(Some(Limits {
            ingress_bits_per_s: limit("ingressRate")?,
            ingress_burst_bits: limit("ingressBurst")?,
            egress_bits_per_s: limit("egressRate")?,
            egress_burst_bits: limit("egressBurst")?,
        }))
    }

    /// Return the resolver settings of the capability `dns`, in a result's words.
    pub fn dns(&self) -> Result<Object, CniError> {
        let asked = or(or(self.runtime("dns")?, self.get("dns").clone()), json!({}));
        let object = asked.as_object().ok_or_else(|| wrong("dns", &asked, "give an object"))?;
        let mut found = Object::new();
        for (theirs, ours) in [
            ("servers", "nameservers"),
            ("nameservers", "nameservers"),
            ("searches", "search"),
            ("search", "search"),
            ("options", "options"),
        ] {
            if let Some(values) = object.get(theirs).filter(|values| is_true(values)) {
                texts(values).ok_or_else(|| wrong(&format!("dns.{theirs}"), values, "give a list of texts"))?;
                found.insert(ours.to_owned(), values.clone());
            }
        }
        Ok(found)
    }

    fn runtime(&self, capability: &str) -> Result<Value, CniError> {
        let found = object(self.get("runtimeConfig"), "runtimeConfig")?.and_then(|each| each.get(capability));
        Ok(found.map_or(Value::Null, folded))
    }

    fn argument(&self, name: &str) -> Result<&Value, CniError> {
        let arguments = object(self.get("args"), "args")?.and_then(|each| each.get("cni")).unwrap_or(&Value::Null);
        let found = object(arguments, "args.cni")?.and_then(|each| each.get(name));
        Ok(found.unwrap_or(&Value::Null))
    }

    fn runtime_or_argument(&self, name: &str, otherwise: Value) -> Result<Value, CniError> {
        let found = self.runtime(name)?;
        if is_true(&found) { Ok(found) } else { Ok(or(self.argument(name)?.clone(), otherwise)) }
    }
}

/// Return an address without its prefix length.
pub fn without_length(address: &str) -> String {
    address.split('/').next().unwrap_or_default().to_owned()
}

fn folded(found: &Value) -> Value {
    match found {
        Value::Object(found) => found.iter().map(|(key, value)| (key.to_lowercase(), value.clone())).collect(),
        Value::Array(found) => found.iter().map(folded).collect(),
        _ => found.clone(),
    }
}

fn or(found: Value, otherwise: Value) -> Value {
    if is_true(&found) { found } else { otherwise }
}

fn texts(found: &Value) -> Option<Vec<&str>> {
    found.as_array()?.iter().map(Value::as_str).collect()
}

fn optional_text<'a>(found: &'a Object, field: &str, name: &str) -> Result<&'a str, CniError> {
    found.get(field).filter(|value| is_true(value)).map_or(Ok(""), |value| text(value, name))
}

fn wrong(name: &str, found: &Value, why: &str) -> CniError {
    CniError::config(format!("{name} {}: {why}", repr_value(found)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: Value) -> Config {
        Config::new(json.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn ports_are_read_in_any_case() {
        let ports = json!([
            {"HostPort": 8080, "ContainerPort": 80, "Protocol": "TCP", "HostIP": "0.0.0.0"},
            {"hostPort": 0, "containerPort": 81},
        ]);
        let found = config(json!({"runtimeConfig": {"portMappings": ports}})).ports().unwrap();
        let wanted =
            PortMapping { host_port: 8080, container_port: 80, protocol: "tcp".into(), host_address: "".into() };
        assert_eq!(found, [wanted]);
    }

    #[test]
    fn what_is_asked_for_in_two_places_is_taken_from_the_first() {
        let both = json!({"runtimeConfig": {"ips": ["10.0.0.1/24"]}, "args": {"cni": {"ips": ["10.0.0.2"]}}});
        assert_eq!(config(both).addresses().unwrap(), ["10.0.0.1"]);
        let later = json!({"runtimeConfig": {"ips": []}, "args": {"cni": {"ips": ["10.0.0.2"]}}});
        assert_eq!(config(later).addresses().unwrap(), ["10.0.0.2"]);
        let error = config(json!({"runtimeConfig": 1})).addresses().unwrap_err();
        assert_eq!(error.message, "runtimeConfig 1: give an object");
    }

    #[test]
    fn limits_may_be_left_out_in_part() {
        let found = config(json!({"runtimeConfig": {"bandwidth": {"ingressRate": 5, "egressRate": null}}})).limits();
        assert_eq!(found.unwrap().unwrap().ingress_bits_per_s, 5);
        assert_eq!(config(json!({})).limits(), Ok(None));
    }
}

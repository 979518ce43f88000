//! What ADD answers (CNI specification, "Success"), in the version the runtime speaks. As `shim/cni/result.py`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::{Value, json};

use crate::config::{Object, is_true, objects, place};
use crate::contract::Attachment;
use crate::errors::{BUG, CniError};
use crate::text::{as_float, repr, str_value};

/// Return the result of an attachment, what the plugins before found passed on.
pub fn result(
    version: &str,
    attachment: &Attachment,
    mac: &str,
    dns: Object,
    previous: Option<&Object>,
) -> Result<Value, CniError> {
    let mut found = previous.cloned().unwrap_or_default();
    let mut taken = |name: &str| match found.get_mut(name).map(Value::take) {
        Some(Value::Array(listed)) => listed,
        _ => Vec::new(),
    };
    let (mut interfaces, mut ips, mut routes) = (taken("interfaces"), taken("ips"), taken("routes"));
    let key = attachment.key.as_ref().ok_or_else(|| bug("the router answered no attachment".to_owned()))?;
    let mut mine = json!({"name": key.if_name, "mac": mac, "sandbox": attachment.netns_path});
    if place(version) >= place("1.1.0") {
        mine["mtu"] = attachment.mtu_bytes.into();
    }
    for text in &attachment.addresses {
        let (address, gateway) =
            interface(text).ok_or_else(|| bug(format!("the router answered the address {}", repr(text))))?;
        let (bits, default) = if address.is_ipv6() { (128, "::/0") } else { (32, "0.0.0.0/0") };
        // As it stands on the interface: a TUN has no link for others of the subnet to be on.
        let mut entry =
            json!({"address": format!("{address}/{bits}"), "gateway": gateway, "interface": interfaces.len()});
        if version.starts_with("0.") {
            entry["version"] = if address.is_ipv6() { "6" } else { "4" }.into();
        }
        ips.push(entry);
        // The sandbox's first way out stays.
        if routes.iter().all(|each| each.get("dst").and_then(Value::as_str) != Some(default)) {
            routes.push(json!({"dst": default, "gw": gateway}));
        }
    }
    interfaces.push(mine);
    let mut merged = match found.get("dns") {
        Some(Value::Object(found)) => found.clone(),
        _ => Object::new(),
    };
    merged.extend(dns);
    found.insert("cniVersion".to_owned(), version.into());
    found.insert("interfaces".to_owned(), interfaces.into());
    found.insert("ips".to_owned(), ips.into());
    found.insert("routes".to_owned(), routes.into());
    found.insert("dns".to_owned(), merged.into());
    Ok(found.into())
}

/// Return an address as "10.1.2.5/24", and the node's in its subnet: the first that a host may have (router/ipam.py).
fn interface(text: &str) -> Option<(IpAddr, IpAddr)> {
    let (address, length) = text.split_once('/')?;
    let (address, length): (IpAddr, u32) = (address.parse().ok()?, length.parse().ok()?);
    let (packed, bits) = match address {
        IpAddr::V4(address) => (u128::from(u32::from(address)), 32_u32),
        IpAddr::V6(address) => (u128::from(address), 128),
    };
    let free = bits.checked_sub(length).filter(|_| length > 0)?;
    let network = packed >> free.min(127) << free.min(127); // 128 free bits would need a length of 0
    let first = if length == bits - 1 { network } else { network.checked_add(1)? };
    let gateway = match address {
        IpAddr::V4(_) => Ipv4Addr::from(u32::try_from(first).ok()?).into(),
        IpAddr::V6(_) => Ipv6Addr::from(first).into(),
    };
    Some((address, gateway))
}

/// Return a locally administered unicast address that stays the same for an attachment: a TUN has none of its own.
///
/// podman 4.3 fails on an interface without one.
pub fn synthetic_mac(container_id: &str, if_name: &str) -> String {
    // FNV-1a, 64 bits, as the Python client has it: an attachment must not change its address with the client.
    let mut found: u64 = 0xCBF2_9CE4_8422_2325;
    for byte in format!("{container_id}/{if_name}").bytes() {
        found = (found ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3);
    }
    let bytes = found.to_be_bytes();
    format!("02:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}", bytes[0], bytes[1], bytes[2], bytes[3], bytes[4])
}

/// Return a hardware address asked for. CniError when it is none a unicast interface can have.
pub fn checked_mac(text: &str) -> Result<String, CniError> {
    let parts: Vec<&str> = text.split(':').collect();
    if parts.len() != 6 || !parts.iter().all(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit())) {
        return Err(CniError::config(format!("mac {}: write six bytes, as 02:00:0a:01:02:03", repr(text))));
    }
    if u8::from_str_radix(parts[0], 16).is_ok_and(|first| first & 1 == 1) {
        let why = format!("mac {} is for many receivers: use one with an even first byte", repr(text));
        return Err(CniError::config(why));
    }
    Ok(text.to_lowercase())
}

/// Return the addresses and route destinations that a result says of one interface.
///
/// Routes of a result belong to no interface: those through a gateway of ours, or through none, are taken for ours.
pub fn own_part(found: Option<&Object>, if_name: &str, sandbox: &str) -> Result<(Vec<String>, Vec<String>), CniError> {
    let listed = |name: &str| found.and_then(|found| objects(found.get(name)?)).unwrap_or_default();
    let interfaces = listed("interfaces");
    let is_own = |each: &Object| {
        let place = each.get("sandbox").unwrap_or(&Value::Null);
        each.get("name").is_some_and(|name| name == if_name) && (place == sandbox || place.is_null())
    };
    let own: Vec<usize> = (0..interfaces.len()).filter(|&index| is_own(interfaces[index])).collect();
    if own.is_empty() && !interfaces.is_empty() {
        let why = format!("prevResult knows no interface {if_name} in {sandbox}: it is not what ADD answered");
        return Err(CniError::config(why));
    }
    let mut ips = listed("ips");
    ips.retain(|each| each.get("interface").is_some_and(|index| is_among(index, &own)));
    let routes = listed("routes");
    let ours = |each: &&&Object| ips.iter().any(|ip| ip.get("gateway") == each.get("gw"));
    let text = |each: &&Object, name: &str| each.get(name).filter(|value| is_true(value)).map(str_value);
    let destinations = routes.iter().filter(ours).filter_map(|each| text(each, "dst")).collect();
    Ok((ips.iter().filter_map(|each| text(each, "address")).collect(), destinations))
}

/// Tell whether a value is one of some places, as Python compares: True is 1.
fn is_among(found: &Value, places: &[usize]) -> bool {
    let found = match found {
        Value::Bool(found) => f64::from(u8::from(*found)),
        Value::Number(found) => as_float(found),
        _ => return false,
    };
    places.iter().any(|&place| place as f64 == found)
}

fn bug(what: String) -> CniError {
    CniError::new(BUG, format!("a bug of podwire-cni: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateways_are_the_first_of_their_subnet() {
        for (text, wanted) in [
            ("10.42.1.5/24", Some("10.42.1.1")),
            ("10.42.1.5/31", Some("10.42.1.4")),
            ("255.255.255.255/32", None),
            ("fd42:0:0:1::5/64", Some("fd42:0:0:1::1")),
            ("fd42::5/127", Some("fd42::4")),
            ("10.42.1.5/33", None),
            ("10.42.1.5/0", None),
            ("10.42.1.5", None),
            ("here/24", None),
        ] {
            let found = interface(text).map(|(_, gateway)| gateway.to_string());
            assert_eq!(found.as_deref(), wanted, "{text}");
        }
    }

    #[test]
    fn hardware_addresses_are_those_of_the_python_client() {
        assert_eq!(synthetic_mac("sandbox", "eth0"), "02:04:e8:3a:c4:58");
        assert_eq!(checked_mac("0A:00:00:00:00:07").unwrap(), "0a:00:00:00:00:07");
        for text in ["01:00:00:00:00:01", "nonsense", "0a:00:00:00:00", "0a:00:00:00:00:+7", "ä:00:00:00:00:07"] {
            assert!(checked_mac(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_was_found_before_is_passed_on() {
        let previous = json!({
            "cniVersion": "0.4.0",
            "interfaces": [{"name": "lo"}],
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1"}],
            "dns": {"domain": "x", "search": ["old"]},
            "more": [1],
        });
        let attachment = Attachment {
            key: Some(crate::contract::AttachmentKey { sandbox_id: "a".into(), if_name: "eth0".into() }),
            netns_path: "/n".into(),
            addresses: vec!["10.42.1.5/24".into(), "fd42::5/64".into()],
            mtu_bytes: 1400,
            ..Default::default()
        };
        let dns = json!({"search": ["new"]}).as_object().unwrap().clone();
        let found = result("1.1.0", &attachment, "m", dns, previous.as_object()).unwrap();
        let wanted = json!({
            "cniVersion": "1.1.0",
            "interfaces": [{"name": "lo"}, {"name": "eth0", "mac": "m", "sandbox": "/n", "mtu": 1400}],
            "ips": [
                {"address": "10.42.1.5/32", "gateway": "10.42.1.1", "interface": 1},
                {"address": "fd42::5/128", "gateway": "fd42::1", "interface": 1},
            ],
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1"}, {"dst": "::/0", "gw": "fd42::1"}],
            "dns": {"domain": "x", "search": ["new"]},
            "more": [1],
        });
        assert_eq!(found, wanted);
        let own = own_part(found.as_object(), "eth0", "/n").unwrap();
        assert_eq!(own, (vec!["10.42.1.5/32".into(), "fd42::5/128".into()], vec!["::/0".into()]));
        assert!(own_part(found.as_object(), "eth1", "/n").is_err());
        assert_eq!(result("1.1.0", &Attachment::default(), "", Object::new(), None).unwrap_err().code, BUG);
    }
}

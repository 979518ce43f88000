//! The verbs, each a call or none of the router. As `shim/cni/verbs.py`.

use std::time::Duration;

use serde_json::{Value, json};

use crate::call::{Asked, call};
use crate::config::{Config, NEWEST, VERSIONS, place};
use crate::contract::{
    AttachRequest, AttachmentKey, CheckRequest, CheckResponse, DetachRequest, FreeAddresses, GetStatusRequest, Status,
    SyncRequest, SyncResponse,
};
use crate::environment::Environment;
use crate::errors::{self, CniError, LIMITED, MISSING, UNAVAILABLE, UNKNOWN_CONTAINER};
use crate::result::{checked_mac, own_part, result, synthetic_mac};
use crate::router::{self, Began};
use crate::wishes::without_length;

const TIMEOUT: Duration = Duration::from_secs(10);
const GC_TIMEOUT: Duration = Duration::from_secs(60);
const POD_LABELS: [(&str, &str); 3] =
    [("K8S_POD_NAMESPACE", "namespace"), ("K8S_POD_NAME", "name"), ("K8S_POD_UID", "uid")];

/// Give the sandbox its interface.
pub fn add(environment: &Environment, config: &Config, began: Began) -> Result<Value, CniError> {
    config.check_own()?;
    let key = AttachmentKey { sandbox_id: environment.container_id()?, if_name: environment.if_name()? };
    let arguments = environment.arguments()?;
    let argument = |name: &str| arguments.get(name).filter(|text| !text.is_empty());
    let mac = Some(config.mac()?).filter(|text| !text.is_empty()).or_else(|| argument("MAC").cloned());
    let mac = mac.as_deref().map_or_else(|| Ok(synthetic_mac(&key.sandbox_id, &key.if_name)), checked_mac)?;
    let mut addresses = config.addresses()?;
    if addresses.is_empty() {
        let listed = argument("IP").map_or("", String::as_str);
        addresses = listed.split(',').filter(|text| !text.is_empty()).map(without_length).collect();
    }
    let (previous, dns) = (config.previous()?, config.dns()?);
    let (socket_path, netns_path) = (config.socket_path()?, environment.netns_path()?);
    let (wait, mtu_bytes, mut labels) = (config.wait()?, config.mtu_bytes()?, config.labels()?);
    for (theirs, ours) in POD_LABELS {
        labels.extend(argument(theirs).map(|text| (ours.to_owned(), text.clone())));
    }
    let request = AttachRequest {
        key: Some(key),
        netns_path,
        addresses,
        mtu_bytes,
        labels,
        owner: config.owner()?,
        ports: config.ports()?,
        limits: config.limits()?,
        began_ns: began.ns(),
    };
    let attachment = router::attach(socket_path, &request, wait)?;
    result(config.version()?, &attachment, &mac, dns, previous)
}

/// Take the sandbox's interface away, whatever there is of it; when no router answers, the next one does it.
pub fn delete(environment: &Environment, config: &Config) -> Result<(), CniError> {
    let socket_path = config.socket_path()?;
    let key = AttachmentKey { sandbox_id: environment.container_id()?, if_name: environment.if_name()? };
    router::detach(socket_path, key)
}

/// Look whether all that ADD answered is still so.
pub fn check(environment: &Environment, config: &Config) -> Result<(), CniError> {
    let key = AttachmentKey { sandbox_id: environment.container_id()?, if_name: environment.if_name()? };
    let netns_path = environment.netns_path()?;
    let (addresses, routes) = own_part(config.previous()?, &key.if_name, &netns_path)?;
    let request = CheckRequest { key: Some(key), netns_path, addresses, routes };
    match call::<_, CheckResponse>(config.socket_path()?, "Check", &request, TIMEOUT) {
        Ok(_) => Ok(()),
        Err(error) => Err(match error.status {
            errors::Status::NOT_FOUND => CniError::new(UNKNOWN_CONTAINER, error.message),
            errors::Status::FAILED_PRECONDITION => CniError::new(MISSING, error.message),
            _ => error.into(),
        }),
    }
}

/// Return an error when an ADD could not be served, or a note for the log, if there is one.
///
/// One unreachable peer of many does not make a node unready: it would take down every node for one that is dead.
pub fn status(config: &Config) -> Result<Option<String>, CniError> {
    let found = call::<_, Status>(config.socket_path()?, "GetStatus", &GetStatusRequest {}, TIMEOUT)
        .map_err(|error| CniError::new(UNAVAILABLE, error.message))?;
    if found.subnets.is_empty() {
        let why = format!("the subnet table gives node {} no subnet: no Pod can be attached", found.node);
        return Err(CniError::new(UNAVAILABLE, why));
    }
    if let Some(lease) = found.source.and_then(|source| source.lease).filter(|lease| !lease.held) {
        let why = format!("the lease of node {} is not held ({}): no address is given out", found.node, lease.why);
        return Err(CniError::new(UNAVAILABLE, why));
    }
    let is_v6 = |each: &&FreeAddresses| each.subnet.contains(':');
    let (v6, v4): (Vec<_>, Vec<_>) = found.free_addresses.iter().partition(is_v6);
    let v6_first = found.free_addresses.first().as_ref().is_some_and(is_v6);
    for subnets in if v6_first { [v6, v4] } else { [v4, v6] } {
        if !subnets.is_empty() && subnets.iter().all(|each| each.free == 0) {
            let names = subnets.iter().map(|each| each.subnet.as_str()).collect::<Vec<_>>().join(", ");
            let why = format!("no address is free in {names}: detach Pods, or give the node another subnet");
            return Err(CniError::new(UNAVAILABLE, why));
        }
    }
    let (count, all) = (found.peers_unreachable, found.peers);
    if count == 0 {
        return Ok(None);
    }
    let said = format!("{count} of {all} peers cannot be reached: {}", found.unreachable.join("; "));
    if count == all { Err(CniError::new(LIMITED, said)) } else { Ok(Some(said)) }
}

/// Release every attachment of the network that the runtime does not name (GC).
pub fn collect(config: &Config, began: Began) -> Result<(), CniError> {
    let request = SyncRequest { live: config.valid_attachments()?, owner: config.owner()?, as_of_ns: began.ns() };
    // Some were released, and others could not be: which, the router says.
    call::<_, SyncResponse>(config.socket_path()?, "Sync", &request, GC_TIMEOUT)?;
    Ok(())
}

/// Say what is spoken, in the version that was asked in if it is one of them.
pub fn version(config: &Config) -> Result<Value, CniError> {
    let asked = config.version()?;
    let spoken = if place(asked).is_some() { asked } else { NEWEST };
    Ok(json!({"cniVersion": spoken, "supportedVersions": VERSIONS}))
}

impl Asked for AttachRequest {
    fn texts(&self) -> Vec<&str> {
        let addresses = self.addresses.iter().map(String::as_str);
        let labels = self.labels.iter().flat_map(|(key, value)| [key.as_str(), value]);
        let ports = self.ports.iter().flat_map(|each| [each.protocol.as_str(), &each.host_address]);
        addresses.chain(labels).chain(ports).collect() // the others are checked where they come from
    }
}

impl Asked for DetachRequest {
    fn texts(&self) -> Vec<&str> {
        Vec::new()
    }
}

impl Asked for CheckRequest {
    fn texts(&self) -> Vec<&str> {
        self.addresses.iter().chain(&self.routes).map(String::as_str).collect()
    }
}

impl Asked for SyncRequest {
    fn texts(&self) -> Vec<&str> {
        self.live.iter().flat_map(|key| [key.sandbox_id.as_str(), &key.if_name]).collect()
    }
}

impl Asked for GetStatusRequest {
    fn texts(&self) -> Vec<&str> {
        Vec::new()
    }
}

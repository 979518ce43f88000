//! The rows of plain numbers and bytes in which Python is told things, and tells them: what python.rs hands in and out.

use std::net::IpAddr;
use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::drops::Dropped;
use crate::exceptions::{Exception, Party};
use crate::model::{Limit, Named, Origin, Slot, Tally, Way};
use crate::table::Entry;
use crate::taps::{self, Side, Sighting, Tap, Whose};
use crate::wire::bpf::{Instruction, MOST_INSTRUCTIONS};
use crate::wire::flow::Flow;
use crate::wire::packet::Addresses;

/// received packets, bytes, frames; delivered, tunnelled; sent packets, bytes; ICMP errors; control packets; drops by
/// reason.
pub type Counts = (u64, u64, u64, u64, u64, u64, u64, u64, u64, Vec<u64>);
pub type Rate = (u64, u64);
/// Slot, serial, packed address, port; offload, epoch, up, MTU.
pub type PeerRow = (Slot, u64, Vec<u8>, u16, bool, Option<u8>, bool, usize);
/// By slot: attachments, peers; strangers, gone, ICMP errors suppressed, restarts, drops of the socket, batches.
pub type AllCounts = (Vec<Counts>, Vec<Counts>, Counts, Counts, u64, usize, u32, Vec<u64>);
/// An attachment's number, or a packed address and a port.
pub type Name = (Option<u64>, Vec<u8>, u16);
/// Packed source and destination, protocol, ports.
pub type Tuple = (Vec<u8>, Vec<u8>, u8, u16, u16);
/// Source, reason, flow, packets, first and last time, length of the last, what the next link carries.
pub type DroppedRow = (Name, usize, Option<Tuple>, u64, u64, u64, usize, usize);
/// Number; kind, slot and serial of the party, if it is there, and whether there is to be one; program; most bytes, one in
/// how many; before, after, dropped only.
pub type TapRow = (u64, Option<(u8, Slot, u64)>, bool, Vec<(u16, u8, u8, u32)>, usize, u64, bool, bool, bool);
/// Tap, time, whether before, source, target, verdict, reason, packets, length, bytes.
pub type SightingRow = (u64, u64, bool, Option<Name>, Option<Name>, &'static str, Option<usize>, u64, usize, Vec<u8>);

pub const PORT: u8 = 0;
pub const PEER: u8 = 1;
pub const ROUTER: u8 = 2;

pub fn counts(tally: &Tally) -> Counts {
    (
        tally.received_packets,
        tally.received_bytes,
        tally.received_frames,
        tally.delivered_packets,
        tally.tunnelled_packets,
        tally.sent_packets,
        tally.sent_bytes,
        tally.icmp_errors,
        tally.control_packets,
        tally.dropped.to_vec(),
    )
}

pub fn limit(rate: Option<Rate>) -> Option<Limit> {
    rate.map(|(bytes_per_s, burst_bytes)| Limit { bytes_per_s, burst_bytes })
}

pub fn address(packed: &[u8]) -> PyResult<IpAddr> {
    if let Ok(packed) = <[u8; 4]>::try_from(packed) {
        return Ok(packed.into());
    }
    let packed = <[u8; 16]>::try_from(packed).map_err(|_| PyValueError::new_err("an address has 4 or 16 bytes"))?;
    Ok(packed.into())
}

pub fn entries(prefixes: Vec<(Vec<u8>, u32, u32)>) -> PyResult<Vec<Entry>> {
    let entry = |(packed, prefix_bits, value): (Vec<u8>, u32, u32)| {
        let (v6, network) = match address(&packed)? {
            IpAddr::V4(address) => (false, u128::from(address.to_bits())),
            IpAddr::V6(address) => (true, address.to_bits()),
        };
        if prefix_bits > if v6 { 128 } else { 32 } || value == 0 {
            return Err(PyValueError::new_err("a prefix longer than its address, or without a value"));
        }
        Ok(Entry { v6, network, prefix_bits, value })
    };
    prefixes.into_iter().map(entry).collect()
}

pub fn origin(kind: u8, slot: Slot) -> PyResult<Origin> {
    match kind {
        PORT => Ok(Origin::Port(slot)),
        PEER => Ok(Origin::Peer(slot)),
        ROUTER => Ok(Origin::Router),
        _ => Err(PyValueError::new_err("a source is an attachment, a peer or the router")),
    }
}

pub fn packed(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

pub fn name(named: Named) -> Name {
    match named {
        Named::Port(number) => (Some(number), Vec::new(), 0),
        Named::Endpoint(endpoint) => (None, packed(endpoint.ip()), endpoint.port()),
    }
}

pub fn tuple(flow: Flow) -> Tuple {
    let (src, dst) = match flow.addresses {
        Addresses::V4 { src, dst } => (src.to_be_bytes().to_vec(), dst.to_be_bytes().to_vec()),
        Addresses::V6 { src, dst } => (src.to_be_bytes().to_vec(), dst.to_be_bytes().to_vec()),
    };
    (src, dst, flow.protocol, flow.src_port, flow.dst_port)
}

pub fn dropped(one: Dropped) -> DroppedRow {
    let Dropped { cause, packets, first_ns, last_ns, packet_bytes, limit_bytes, .. } = one;
    let flow = cause.flow.map(tuple);
    (name(cause.source), cause.reason as usize, flow, packets, first_ns, last_ns, packet_bytes, limit_bytes)
}

pub fn instructions(program: Vec<(u16, u8, u8, u32)>) -> Vec<Instruction> {
    program.into_iter().map(|(code, jt, jf, k)| Instruction { code, jt, jf, k }).collect()
}

pub fn tap(row: TapRow) -> PyResult<Tap> {
    let (number, there, has_party, program, snap_bytes, every, before, after, dropped_only) = row;
    if program.len() > MOST_INSTRUCTIONS {
        return Err(PyValueError::new_err("a program has at most 4096 instructions"));
    }
    let program = instructions(program);
    let whose = match there {
        Some((kind, slot, serial)) => Whose::Of(origin(kind, slot)?, serial),
        None if has_party => Whose::Nobody,
        None => Whose::Everybody,
    };
    Ok(Tap { number, whose, program, snap_bytes, every, before, after, dropped_only })
}

pub fn verdict(way: Way) -> (&'static str, usize) {
    match way {
        Way::Local(slot) => ("local", slot),
        Way::Tunnel(slot) => ("tunnel", slot),
        Way::Reject(reason) => ("reject", reason as usize),
        Way::Drop(reason) => ("drop", reason as usize),
    }
}

pub fn sighting(one: Sighting) -> SightingRow {
    let Sighting { tap, time_ns, side, source, target, fate, packets, packet_bytes, packet } = one;
    let reason = taps::reason(fate).map(|reason| reason as usize);
    let (verdict, before) = (verdict(fate).0, side == Side::Before);
    let packet = packet.into_vec();
    (tap, time_ns, before, source.map(name), target.map(name), verdict, reason, packets, packet_bytes, packet)
}

/// What the slow path is handed, as `(kind, …)` tuples.
#[derive(IntoPyObject)]
pub enum Told {
    /// "refused", thread, kind and slot and serial of the source, reason, packet, MTU, (slot, serial) of the path.
    Refused(&'static str, usize, u8, Slot, u64, usize, Vec<u8>, usize, Option<(Slot, u64)>),
    /// "path", slot, serial of the peer.
    Path(&'static str, Slot, u64),
    /// "answered", slot, serial of the peer, the datagram, when it was received.
    Answered(&'static str, Slot, u64, Vec<u8>, u64),
    /// "question", slot, serial of the peer, the datagram, when it was received.
    Question(&'static str, Slot, u64, Vec<u8>, u64),
    /// "lost", slot, serial of the attachment, errno.
    Lost(&'static str, Slot, u64, i32),
    /// "offload", feature, (slot, serial) of the peer, errno.
    Offload(&'static str, &'static str, Option<(Slot, u64)>, i32),
    /// "failed", why.
    Failed(&'static str, String),
}

/// A time to wait, whatever number it is.
pub fn duration(seconds: f64) -> Duration {
    Duration::from_secs_f64(if seconds > 0.0 { seconds.min(1e6) } else { 0.0 })
}

pub fn party(party: Option<Party>) -> Option<(Slot, u64)> {
    party.map(|party| (party.slot, party.serial))
}

pub fn told(exception: Exception) -> Told {
    match exception {
        Exception::Refused { thread, source, serial, reason, packet, mtu_bytes, path } => {
            let (kind, slot) = match source {
                Origin::Port(slot) => (PORT, slot),
                Origin::Peer(slot) => (PEER, slot),
                Origin::Router => (ROUTER, 0),
            };
            Told::Refused("refused", thread, kind, slot, serial, reason as usize, packet, mtu_bytes, party(path))
        }
        Exception::PathTooSmall { peer } => Told::Path("path", peer.slot, peer.serial),
        Exception::ProbeAnswered { peer, answer, received_ns } => {
            Told::Answered("answered", peer.slot, peer.serial, answer.to_vec(), received_ns)
        }
        Exception::QuestionCame { peer, datagram, received_ns } => {
            Told::Question("question", peer.slot, peer.serial, datagram, received_ns)
        }
        Exception::AttachmentLost { port, errno } => Told::Lost("lost", port.slot, port.serial, errno),
        Exception::OffloadFailed { feature, peer, errno } => Told::Offload("offload", feature, party(peer), errno),
        Exception::Failed { why } => Told::Failed("failed", why),
    }
}

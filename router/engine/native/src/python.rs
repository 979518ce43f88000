//! The Python module `router.engine.native._core`: plain numbers and bytes in and out; router/engine/native/engine.py
//! speaks the engine contract over it.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;
use std::time::Duration;

use pyo3::exceptions::{PyKeyError, PyOSError, PyValueError};
use pyo3::prelude::*;

use crate::engine::{Engine, NewPeer, NewPort, NewRoutes};
use crate::exceptions::{Exception, Party};
use crate::forwarder::Settings;
use crate::model::{DropReason, Limit, Origin, Slot, Tally, Way};
use crate::spin::Spinning;
use crate::table::{Entry, Table};
use crate::view::{Known, Leads};

/// received packets, bytes, frames; delivered, tunnelled; sent packets, bytes; ICMP errors; control packets; drops by
/// reason.
type Counts = (u64, u64, u64, u64, u64, u64, u64, u64, u64, Vec<u64>);
type Rate = (u64, u64);
/// Slot, serial, packed address, port; offload, epoch, up, MTU.
type PeerRow = (Slot, u64, Vec<u8>, u16, bool, Option<u8>, bool, usize);
/// By slot: attachments, peers; strangers, gone, ICMP errors suppressed, restarts, drops of the socket.
type AllCounts = (Vec<Counts>, Vec<Counts>, Counts, Counts, u64, usize, u32);

const PORT: u8 = 0;
const PEER: u8 = 1;
const ROUTER: u8 = 2;

fn counts(tally: &Tally) -> Counts {
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

fn limit(rate: Option<Rate>) -> Option<Limit> {
    rate.map(|(bytes_per_s, burst_bytes)| Limit { bytes_per_s, burst_bytes })
}

fn address(packed: &[u8]) -> PyResult<IpAddr> {
    if let Ok(packed) = <[u8; 4]>::try_from(packed) {
        return Ok(packed.into());
    }
    let packed = <[u8; 16]>::try_from(packed).map_err(|_| PyValueError::new_err("an address has 4 or 16 bytes"))?;
    Ok(packed.into())
}

fn entries(prefixes: Vec<(Vec<u8>, u32, u32)>) -> PyResult<Vec<Entry>> {
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

fn origin(kind: u8, slot: Slot) -> PyResult<Origin> {
    match kind {
        PORT => Ok(Origin::Port(slot)),
        PEER => Ok(Origin::Peer(slot)),
        ROUTER => Ok(Origin::Router),
        _ => Err(PyValueError::new_err("a source is an attachment, a peer or the router")),
    }
}

/// What the slow path is handed, as `(kind, …)` tuples.
#[derive(IntoPyObject)]
enum Told {
    /// "refused", thread, kind and slot and serial of the source, reason, packet, MTU, (slot, serial) of the path.
    Refused(&'static str, usize, u8, Slot, u64, usize, Vec<u8>, usize, Option<(Slot, u64)>),
    /// "path", slot, serial of the peer.
    Path(&'static str, Slot, u64),
    /// "answered", slot, serial of the peer, the datagram, when it was received.
    Answered(&'static str, Slot, u64, Vec<u8>, u64),
    /// "lost", slot, serial of the attachment, errno.
    Lost(&'static str, Slot, u64, i32),
    /// "offload", feature, (slot, serial) of the peer, errno.
    Offload(&'static str, &'static str, Option<(Slot, u64)>, i32),
    /// "failed", why.
    Failed(&'static str, String),
}

fn party(party: Option<Party>) -> Option<(Slot, u64)> {
    party.map(|party| (party.slot, party.serial))
}

fn told(exception: Exception) -> Told {
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
        Exception::AttachmentLost { port, errno } => Told::Lost("lost", port.slot, port.serial, errno),
        Exception::OffloadFailed { feature, peer, errno } => Told::Offload("offload", feature, party(peer), errno),
        Exception::Failed { why } => Told::Failed("failed", why),
    }
}

/// One engine; see `router.engine.interface.Engine`.
#[pyclass(frozen)]
struct Core(Engine);

#[pymethods]
impl Core {
    #[new]
    #[pyo3(signature = (
        socket, *, threads, vni, mtu_bytes, icmp_errors_per_s, max_segments, tun_checksum, tun_tso, tun_uso, udp_segment,
        spin_ns = 0, spin_percent = 100
    ))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        socket: RawFd,
        threads: usize,
        vni: u32,
        mtu_bytes: usize,
        icmp_errors_per_s: u32,
        max_segments: usize,
        tun_checksum: bool,
        tun_tso: bool,
        tun_uso: bool,
        udp_segment: bool,
        spin_ns: u64,
        spin_percent: u64,
    ) -> PyResult<Self> {
        let settings =
            Settings { vni, mtu_bytes, icmp_errors_per_s, max_segments, tun_checksum, tun_tso, tun_uso, udp_segment };
        let spinning = Spinning { look_ns: spin_ns, share_percent: spin_percent };
        Ok(Core(Engine::new(settings, socket, threads, spinning)?))
    }

    /// Swap a snapshot in: prefixes (packed, bits, value), what values lead to (kind, a peer's slot), peers (slot, serial,
    /// packed address, port, offload, epoch, up, MTU), whether Pods may leave, the node's addresses and epoch.
    #[allow(clippy::too_many_arguments)]
    fn replace_routes(
        &self,
        py: Python,
        prefixes: Vec<(Vec<u8>, u32, u32)>,
        leads: Vec<(u8, Slot)>,
        peers: Vec<PeerRow>,
        egress: bool,
        node_addresses: Vec<Vec<u8>>,
        epoch: u8,
    ) -> PyResult<()> {
        let lead = |(kind, slot): (u8, Slot)| match kind {
            1 => Leads::OwnSubnet,
            2 => Leads::Cluster,
            3 => Leads::Never,
            4 => Leads::Peer(slot),
            _ => Leads::Nowhere,
        };
        let peer = |(slot, serial, packed, port, offload, epoch, up, mtu_bytes): PeerRow| {
            let known = Known { offload, epoch, up, mtu_bytes };
            Ok(NewPeer { slot, serial, endpoint: SocketAddr::new(address(&packed)?, port), known })
        };
        let routes = NewRoutes {
            entries: entries(prefixes)?,
            leads: leads.into_iter().map(lead).collect(),
            peers: peers.into_iter().map(peer).collect::<PyResult<_>>()?,
            egress,
            node_addresses: node_addresses.iter().map(|packed| address(packed)).collect::<PyResult<_>>()?,
            epoch,
        };
        py.detach(|| self.0.replace_routes(routes));
        Ok(())
    }

    /// Carry packets of an attachment; return its serial. Raise OSError where the fd cannot be waited for.
    #[allow(clippy::too_many_arguments)]
    fn attach(
        &self,
        py: Python,
        slot: Slot,
        fd: RawFd,
        addresses: Vec<Vec<u8>>,
        is_node: bool,
        mtu_bytes: usize,
        ingress: Option<Rate>,
        egress: Option<Rate>,
    ) -> PyResult<u64> {
        let addresses = addresses.iter().map(|packed| address(packed)).collect::<PyResult<_>>()?;
        let port = NewPort { slot, fd, addresses, is_node, mtu_bytes, ingress: limit(ingress), egress: limit(egress) };
        let refused = |errno| PyOSError::new_err((errno, std::io::Error::from_raw_os_error(errno).to_string()));
        py.detach(|| self.0.attach(port)).map_err(refused)
    }

    /// Stop carrying and return the final count; KeyError if nothing is there.
    fn detach(&self, py: Python, slot: Slot) -> PyResult<Counts> {
        let last = py.detach(|| self.0.detach(slot)).ok_or_else(|| PyKeyError::new_err(slot))?;
        Ok(counts(&last))
    }

    /// Return ("local" | "tunnel" | "reject" | "drop", slot or reason) for a packet of a source.
    fn decide(&self, py: Python, packet: &[u8], kind: u8, slot: Slot) -> PyResult<(&'static str, usize)> {
        let source = origin(kind, slot)?;
        let packet = packet.to_vec();
        Ok(match py.detach(|| self.0.decide(&packet, source)) {
            Way::Local(slot) => ("local", slot),
            Way::Tunnel(slot) => ("tunnel", slot),
            Way::Reject(reason) => ("reject", reason as usize),
            Way::Drop(reason) => ("drop", reason as usize),
        })
    }

    /// Send a packet of the router's own about one that `thread` refused; False when it found no way.
    fn emit(&self, py: Python, thread: usize, packet: &[u8], kind: u8, slot: Slot, serial: u64) -> PyResult<bool> {
        let about = origin(kind, slot)?;
        let packet = packet.to_vec();
        Ok(py.detach(|| self.0.emit(thread, &packet, about, serial)))
    }

    fn lower_mtu(&self, py: Python, slot: Slot, serial: u64, mtu_bytes: usize) {
        py.detach(|| self.0.lower_mtu(Party { slot, serial }, mtu_bytes));
    }

    fn mtu_of(&self, py: Python, slot: Slot, serial: u64) -> Option<usize> {
        py.detach(|| self.0.mtu_of(Party { slot, serial }))
    }

    fn start(&self, py: Python) -> PyResult<()> {
        Ok(py.detach(|| self.0.start())?)
    }

    fn stop(&self, py: Python) {
        py.detach(|| self.0.stop());
    }

    fn forward(&self, py: Python, budget: usize) -> usize {
        py.detach(|| self.0.forward(budget))
    }

    fn counters(&self, py: Python) -> AllCounts {
        let all = py.detach(|| self.0.counters());
        (
            all.ports.iter().map(counts).collect(),
            all.peers.iter().map(counts).collect(),
            counts(&all.strangers),
            counts(&all.gone),
            all.suppressed,
            all.restarts,
            all.socket_drops,
        )
    }

    /// Return the exceptions that wait; wait for the first at most so long, in seconds.
    fn exceptions(&self, py: Python, timeout_s: f64) -> Vec<Told> {
        let timeout = Duration::from_secs_f64(timeout_s.max(0.0));
        py.detach(|| self.0.slow_path.take(timeout)).into_iter().map(told).collect()
    }

    /// Let `exceptions` return now.
    fn nudge(&self) {
        self.0.slow_path.nudge();
    }

    /// Let the next batch meet a bug: for tests of what happens then.
    fn sabotage(&self) {
        self.0.sabotage();
    }
}

/// The engine's table alone, for its tests and figures.
#[pyclass(frozen)]
struct Lookup(Table);

#[pymethods]
impl Lookup {
    #[new]
    fn new(prefixes: Vec<(Vec<u8>, u32, u32)>) -> PyResult<Self> {
        Ok(Lookup(Table::new(&entries(prefixes)?)))
    }

    /// Return the value of the longest prefix that holds a packed address; 0 where there is none.
    fn index(&self, packed: &[u8]) -> PyResult<u32> {
        Ok(match address(packed)? {
            IpAddr::V4(address) => self.0.lookup_v4(address.to_bits()),
            IpAddr::V6(address) => self.0.lookup_v6(address.to_bits()),
        })
    }

    /// Look each of the addresses (packed one after the other, all of `each` bytes) up `times` over; return seconds a look-up.
    fn time(&self, py: Python, packed: &[u8], each: usize, times: usize) -> PyResult<f64> {
        let addresses = packed.chunks_exact(each.max(1)).map(address).collect::<PyResult<Vec<_>>>()?;
        if addresses.is_empty() || times == 0 {
            return Err(PyValueError::new_err("nothing to look up"));
        }
        let spent = py.detach(|| {
            let start = std::time::Instant::now();
            let mut found = 0u32;
            for address in (0..times).flat_map(|_| &addresses) {
                found = found.wrapping_add(match address {
                    IpAddr::V4(address) => self.0.lookup_v4(address.to_bits()),
                    IpAddr::V6(address) => self.0.lookup_v6(address.to_bits()),
                });
            }
            std::hint::black_box(found);
            start.elapsed()
        });
        Ok(spent.as_secs_f64() / (times * addresses.len()) as f64)
    }
}

#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Core>()?;
    module.add_class::<Lookup>()?;
    module.add("DROP_REASONS", DropReason::NAMES.to_vec())?;
    Ok(())
}

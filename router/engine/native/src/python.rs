//! The Python module `router.engine.native._core`: plain numbers and bytes in and out; router/engine/native/engine.py
//! speaks the engine contract over it.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;

use pyo3::exceptions::{PyKeyError, PyOSError, PyValueError};
use pyo3::prelude::*;

use crate::engine::{Engine, NewPeer, NewPort, NewRoutes};
use crate::exceptions::Party;
use crate::forwarder::Settings;
use crate::model::{DropReason, Slot};
use crate::rows::*;
use crate::spin::Spinning;
use crate::table::Table;
use crate::view::{Known, Leads};
use crate::wire::bpf;

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
        number: u64,
        fd: RawFd,
        addresses: Vec<Vec<u8>>,
        is_node: bool,
        mtu_bytes: usize,
        ingress: Option<Rate>,
        egress: Option<Rate>,
    ) -> PyResult<u64> {
        let addresses = addresses.iter().map(|packed| address(packed)).collect::<PyResult<_>>()?;
        let port =
            NewPort { slot, number, fd, addresses, is_node, mtu_bytes, ingress: limit(ingress), egress: limit(egress) };
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
        Ok(verdict(py.detach(|| self.0.decide(&packet, source))))
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
            all.batches.to_vec(),
        )
    }

    /// Return what was dropped lately, the newest first.
    fn drops(&self, py: Python) -> Vec<DroppedRow> {
        py.detach(|| self.0.drops()).into_iter().map(dropped).collect()
    }

    /// Return the numbers of attachments that drops and sightings tell of.
    fn told_of(&self, py: Python) -> Vec<u64> {
        py.detach(|| self.0.told_of())
    }

    /// See packets by these taps from now on, by no others.
    fn watch(&self, py: Python, taps: Vec<TapRow>) -> PyResult<()> {
        let taps = taps.into_iter().map(tap).collect::<PyResult<_>>()?;
        py.detach(|| self.0.watch(taps));
        Ok(())
    }

    /// Return what was seen, the oldest first, and by tap how many were lost; wait for the first at most so long.
    fn sightings(&self, py: Python, timeout_s: f64) -> (Vec<SightingRow>, Vec<(u64, u64)>) {
        let (seen, lost) = py.detach(|| self.0.sightings.take(duration(timeout_s)));
        (seen.into_iter().map(sighting).collect(), lost.into_iter().collect())
    }

    /// Return the exceptions that wait; wait for the first at most so long, in seconds.
    fn exceptions(&self, py: Python, timeout_s: f64) -> Vec<Told> {
        py.detach(|| self.0.slow_path.take(duration(timeout_s))).into_iter().map(told).collect()
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

/// Run a classic BPF program over a packet, as taps do: for its tests.
#[pyfunction]
fn run_program(program: Vec<(u16, u8, u8, u32)>, packet: &[u8]) -> u32 {
    bpf::run(&instructions(program), packet)
}

#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Core>()?;
    module.add_class::<Lookup>()?;
    module.add_function(wrap_pyfunction!(run_program, module)?)?;
    module.add("DROP_REASONS", DropReason::NAMES.to_vec())?;
    Ok(())
}

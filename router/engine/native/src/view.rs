//! What the threads share: routes, who holds which address, attachments and peers. Never changed, replaced whole,
//! but for a few atomics.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

use foldhash::fast::RandomState;
use parking_lot::Mutex;

use crate::bucket::Bucket;
use crate::model::{Limit, Slot};
use crate::table::Table;

pub type Map<K, V> = HashMap<K, V, RandomState>;

/// RFC 1191 section 6.3: how long a path is taken for smaller than its interface.
const PATH_MTU_KEPT_NS: u64 = 600_000_000_000;
/// What every IPv4 link carries (RFC 791 section 3.2); a peer claiming less is not believed.
const LEAST_MTU_BYTES: usize = 68;

/// An address as it stands in a header; IPv4 and IPv6 do not mix.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Holding {
    V4(u32),
    V6(u128),
}

impl From<IpAddr> for Holding {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Holding::V4(address.to_bits()),
            IpAddr::V6(address) => Holding::V6(address.to_bits()),
        }
    }
}

/// An attachment, as every thread sees it.
#[derive(Debug)]
pub struct Port {
    /// Tells two apart that had the same slot.
    pub serial: u64,
    /// Its key's; one that is attached anew has the same.
    pub number: u64,
    pub fd: RawFd,
    pub addresses: Vec<Holding>,
    pub is_node: bool,
    pub mtu_bytes: usize,
    /// What it may send; each thread that reads it makes a bucket.
    pub egress: Option<Limit>,
    /// What it may receive, from whichever thread.
    pub policer: Option<Mutex<Bucket>>,
    pub lost: AtomicBool,
}

impl Port {
    /// Tell whether its policer lets a packet be written to the Pod, and count it if so.
    pub fn admits(&self, policer: &Mutex<Bucket>, packet_bytes: u64, now_s: f64) -> bool {
        policer.lock().admit(packet_bytes, now_s)
    }
}

/// What a snapshot says of a peer, which stays the same peer when it changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Known {
    /// Whether it understands our option.
    pub offload: bool,
    /// Its datagrams of an earlier epoch (modulo 256) are dropped; None: not looked at.
    pub epoch: Option<u8>,
    /// Whether it answers probes.
    pub up: bool,
    /// Largest inner packet of the path, as probes found it; 0: not known to be less than the overlay MTU.
    pub mtu_bytes: usize,
}

/// What sending has told of the way to a peer.
#[derive(Debug)]
pub struct Path {
    /// What the kernel said that it carries; more than any packet has, where it refused none of late.
    lowered_bytes: AtomicUsize,
    lowered_until_ns: AtomicU64,
    /// Whether trains go out by UDP_SEGMENT; off once its interface has refused one.
    pub segmenting: AtomicBool,
    /// Whether the slow path is asking for its path MTU already.
    pub measuring: AtomicBool,
}

/// A remote router, as every thread sees it.
#[derive(Debug)]
pub struct Peer {
    pub serial: u64,
    pub endpoint: SocketAddr,
    pub known: Known,
    /// Largest inner packet, if the kernel has not refused it of late.
    limit_bytes: usize,
    /// Shared by all that snapshots say of it one after the other.
    pub path: Arc<Path>,
}

impl Peer {
    pub fn new(serial: u64, endpoint: SocketAddr, known: Known, overlay_mtu_bytes: usize) -> Self {
        let path = Path {
            lowered_bytes: AtomicUsize::new(usize::MAX),
            lowered_until_ns: AtomicU64::new(0),
            segmenting: AtomicBool::new(true),
            measuring: AtomicBool::new(false),
        };
        Peer { serial, endpoint, known, limit_bytes: limit(known, overlay_mtu_bytes), path: Arc::new(path) }
    }

    /// The same peer, of which something else is known now.
    pub fn knowing(&self, known: Known, overlay_mtu_bytes: usize) -> Self {
        let limit_bytes = limit(known, overlay_mtu_bytes);
        Peer { serial: self.serial, endpoint: self.endpoint, known, limit_bytes, path: Arc::clone(&self.path) }
    }

    /// Let packets be as large as the path is known to carry, and as the kernel has not refused of late.
    pub fn mtu_bytes(&self) -> usize {
        self.limit_bytes.min(self.path.lowered_bytes.load(Relaxed))
    }

    /// Take the path for smaller than it was, for ten minutes.
    pub fn lower_mtu(&self, mtu_bytes: usize, now_ns: u64) {
        self.path.lowered_bytes.fetch_min(mtu_bytes.max(LEAST_MTU_BYTES), Relaxed);
        self.path.lowered_until_ns.store(now_ns + PATH_MTU_KEPT_NS, Relaxed);
        self.path.measuring.store(false, Relaxed);
    }

    /// Try the full size again once a lowered MTU has grown old.
    pub fn forget_mtu(&self, now_ns: u64) {
        if now_ns >= self.path.lowered_until_ns.load(Relaxed) {
            self.path.lowered_bytes.store(usize::MAX, Relaxed);
        }
    }
}

fn limit(known: Known, overlay_mtu_bytes: usize) -> usize {
    if known.mtu_bytes == 0 { overlay_mtu_bytes } else { overlay_mtu_bytes.min(known.mtu_bytes.max(LEAST_MTU_BYTES)) }
}

/// What a prefix leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leads {
    Nowhere,
    OwnSubnet,
    Cluster,
    Never,
    Peer(Slot),
}

/// One version of the subnet table, ready for look-ups.
#[derive(Default)]
pub struct Routes {
    pub table: Table,
    /// By the table's values; the first is `Nowhere`.
    pub leads: Vec<Leads>,
    pub by_endpoint: Map<SocketAddr, Slot>,
    /// None where several peers have one host.
    pub by_host: Map<IpAddr, Option<Slot>>,
    pub egress: bool,
    pub node_addresses: Vec<Holding>,
    /// The node's own, modulo 256: sent along with every packet.
    pub epoch: u8,
}

impl Routes {
    pub fn index(&self, address: Holding) -> u32 {
        match address {
            Holding::V4(address) => self.table.lookup_v4(address),
            Holding::V6(address) => self.table.lookup_v6(address),
        }
    }

    pub fn lookup(&self, address: Holding) -> Leads {
        self.leads.get(self.index(address) as usize).copied().unwrap_or(Leads::Nowhere)
    }
}

/// Who on this node holds which address.
#[derive(Default, Clone)]
pub struct Holders {
    pub by_address: Map<Holding, Slot>,
    pub node: Option<Slot>,
}

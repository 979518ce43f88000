//! The node that is fuzzed: Pods and the node itself, peers with our option and one without, limits; and what changes of it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use parking_lot::Mutex;
use podwire_engine::bucket::Bucket;
use podwire_engine::decide::Place;
use podwire_engine::model::Limit;
use podwire_engine::table::{Entry, Table};
use podwire_engine::view::{Holders, Holding, Known, Leads, Map, Peer, Port, Routes};

use crate::random::Random;

pub const NODE: usize = 0;
/// Slots of attachments: the node, then Pods .2 to .6.
pub const PORTS: usize = 6;
/// The nodes 2 to 24: more than there can be runs.
pub const PEERS: usize = 23;
/// What the policed Pod may receive: enough that some passes, little enough that some does not.
const POLICED: Limit = Limit { bytes_per_s: 5_000_000, burst_bytes: 100_000 };

/// Of nodes, on either side of where the byte on the wire goes round; None where the table keeps no count.
const EPOCHS: [Option<u8>; 7] = [None, None, Some(255), Some(0), Some(1), Some(2), Some(3)];
const NOTHING: Known = Known { offload: true, epoch: None, up: true, mtu_bytes: 0 };

pub struct Site {
    place: Place,
    serial: u64,
    mtu_bytes: usize,
}

fn v4(subnet: u8, host: u8) -> IpAddr {
    Ipv4Addr::new(10, 42, subnet, host).into()
}

fn v6(subnet: u8, host: u8) -> IpAddr {
    Ipv6Addr::new(0xfd42, subnet.into(), 0, 0, 0, 0, 0, host.into()).into()
}

pub fn endpoint(number: u8) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::new(127, 0, 0, number).into(), number.into())
}

impl Site {
    pub fn new(mtu_bytes: usize) -> Self {
        let mut site = Site { place: Place::default(), serial: 0, mtu_bytes };
        for slot in 0..PORTS {
            site.attach(slot);
        }
        site.route(&[Some(NOTHING); PEERS], true, 0);
        site
    }

    pub fn place(&self) -> Place {
        self.place.clone()
    }

    /// The node's own.
    pub fn epoch(&self) -> u8 {
        self.place.routes.epoch
    }

    fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    fn attach(&mut self, slot: usize) {
        let host = slot as u8 + 1;
        let addresses = vec![Holding::from(v4(1, host)), Holding::from(v6(1, host))];
        let policer = (host == 6).then(|| Mutex::new(Bucket::new(POLICED, 0.0)));
        let port = Port {
            serial: self.next_serial(),
            number: slot as u64,
            fd: slot as i32,
            addresses,
            is_node: slot == NODE,
            mtu_bytes: match host {
                4 => 65_535,
                5 => 600,
                _ => self.mtu_bytes,
            },
            egress: None,
            policer,
            lost: AtomicBool::new(false),
        };
        self.place.ports.resize(PORTS, None);
        self.place.ports[slot] = Some(Arc::new(port));
        self.hold();
    }

    fn detach(&mut self, slot: usize) {
        self.place.ports[slot] = None;
        self.hold();
    }

    fn hold(&mut self) {
        let mut holders = Holders::default();
        for (slot, port) in self.place.ports.iter().enumerate() {
            let Some(port) = port else { continue };
            holders.by_address.extend(port.addresses.iter().map(|&address| (address, slot)));
            if port.is_node {
                holders.node = Some(slot);
            }
        }
        self.place.holders = Arc::new(holders);
    }

    /// Route to the peers of which something is known. Whoever was there stays the same peer.
    fn route(&mut self, known: &[Option<Known>; PEERS], egress: bool, epoch: u8) {
        let mut leads = vec![Leads::Nowhere, Leads::OwnSubnet, Leads::Cluster, Leads::Never];
        let mut entries = Vec::new();
        let mut add = |address: IpAddr, prefix_bits: u32, value: usize| {
            let (v6, network) = match address {
                IpAddr::V4(address) => (false, address.to_bits().into()),
                IpAddr::V6(address) => (true, address.to_bits()),
            };
            let shift = if v6 { 128 } else { 32 } - prefix_bits;
            entries.push(Entry { v6, network: network >> shift << shift, prefix_bits, value: value as u32 });
        };
        add(v4(1, 0), 24, 1);
        add(v6(1, 0), 64, 1);
        add(v4(0, 0), 16, 2);
        add(v6(0, 0), 16, 2);
        for (address, bits) in [("224.0.0.0", 4), ("127.0.0.0", 8), ("169.254.0.0", 16), ("ff00::", 8), ("fe80::", 10)]
        {
            add(address.parse().expect("an address"), bits, 3);
        }
        let mut peers: Vec<Option<Arc<Peer>>> = vec![None; PEERS];
        let mut by_endpoint = Map::default();
        let mut by_host = Map::default();
        for slot in 0..PEERS {
            let number = slot as u8 + 2;
            let Some(known) = known[slot] else { continue };
            let known = Known { offload: number != 3, ..known };
            peers[slot] = Some(Arc::new(match self.place.peer(slot) {
                Some(same) => same.knowing(known, self.mtu_bytes),
                None => Peer::new(self.next_serial(), endpoint(number), known, self.mtu_bytes),
            }));
            by_endpoint.insert(endpoint(number), slot);
            by_host.insert(endpoint(number).ip(), Some(slot));
            leads.push(Leads::Peer(slot));
            add(v4(number, 0), 24, leads.len() - 1);
            add(v6(number, 0), 64, leads.len() - 1);
        }
        self.place.peers = Arc::new(peers);
        self.place.routes = Arc::new(Routes {
            table: Table::new(&entries),
            leads,
            by_endpoint,
            by_host,
            egress,
            node_addresses: vec![v4(1, 1).into(), v6(1, 1).into()],
            epoch,
        });
    }

    /// Attach, detach, or replace the routes. Who is left out for once is made anew, trains and full path MTU with it.
    pub fn change(&mut self, random: &mut Random) {
        let gone = self.place.ports.iter().position(Option::is_none);
        let slot = gone.unwrap_or_else(|| random.below(PORTS));
        match (random.below(3), self.place.ports[slot].is_some()) {
            (0, true) if random.once_in(6) => self.detach(slot),
            (0, _) => self.attach(slot),
            _ => {
                let known: [_; PEERS] = std::array::from_fn(|_| (!random.once_in(10)).then(|| known(random)));
                self.route(&known, !random.once_in(4), random.next() as u8);
            }
        }
    }
}

fn known(random: &mut Random) -> Known {
    let mtu_bytes = random.pick(&[0, 0, 0, 1300, 600, 1, 9000]);
    Known { epoch: random.pick(&EPOCHS), up: !random.once_in(8), mtu_bytes, ..NOTHING }
}

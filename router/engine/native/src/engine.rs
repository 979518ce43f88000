//! The control side: one engine with its threads, and what may be asked of it (router/engine/interface.py).

use std::hash::BuildHasher;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;

use foldhash::quality::RandomState;
use parking_lot::Mutex;

use crate::bucket::Bucket;
use crate::decide::{Place, transit};
use crate::drops::{DROPS_KEPT, Dropped};
use crate::exceptions::{Party, SlowPath};
use crate::fates::BATCH_BOUNDS;
use crate::forwarder::{Forwarder, Settings};
use crate::kernel::{Errno, Linux, now_ns, socket_drops};
use crate::model::{DropReason, Limit, Named, Origin, Slot, Tally, Way};
use crate::spin::Spinning;
use crate::table::{Entry, Table};
use crate::taps::{Sightings, Tap, Watching};
use crate::view::{Holders, Holding, Known, Leads, Map, Peer, Port, Routes};
use crate::wire::packet::parse_ip;
use crate::worker::{Worker, spawn};

/// An attachment to carry packets of.
pub struct NewPort {
    pub slot: Slot,
    pub number: u64,
    pub fd: RawFd,
    pub addresses: Vec<IpAddr>,
    pub is_node: bool,
    pub mtu_bytes: usize,
    pub ingress: Option<Limit>,
    pub egress: Option<Limit>,
}

/// A peer as a snapshot names it.
pub struct NewPeer {
    pub slot: Slot,
    /// The same in two snapshots only for the same peer: of one node, at one endpoint.
    pub serial: u64,
    pub endpoint: SocketAddr,
    pub known: Known,
}

/// A whole snapshot.
pub struct NewRoutes {
    pub entries: Vec<Entry>,
    /// What the entries' values mean; the first is `Nowhere`.
    pub leads: Vec<Leads>,
    pub peers: Vec<NewPeer>,
    pub egress: bool,
    pub node_addresses: Vec<IpAddr>,
    /// The node's own, modulo 256.
    pub epoch: u8,
}

/// Everything counted, by slot.
#[derive(Default)]
pub struct Counters {
    pub ports: Vec<Tally>,
    pub peers: Vec<Tally>,
    pub strangers: Tally,
    pub gone: Tally,
    pub suppressed: u64,
    pub restarts: usize,
    pub socket_drops: u32,
    pub batches: [u64; BATCH_BOUNDS.len()],
}

struct Control {
    place: Place,
    serial: u64,
    threads: Vec<JoinHandle<()>>,
}

pub struct Engine {
    settings: Arc<Settings>,
    socket: RawFd,
    workers: Vec<Arc<Worker>>,
    control: Mutex<Control>,
    pub slow_path: Arc<SlowPath>,
    pub sightings: Arc<Sightings>,
    sabotage: Arc<AtomicBool>,
}

impl Engine {
    /// One thread carries both directions; of more, the last reads the socket and the others the attachments.
    pub fn new(settings: Settings, socket: RawFd, threads: usize, spinning: Spinning) -> std::io::Result<Self> {
        let settings = Arc::new(settings);
        let slow_path = Arc::new(SlowPath::default());
        let sabotage = Arc::new(AtomicBool::new(false));
        let threads = threads.max(1);
        let workers = (0..threads).map(|thread| {
            let name = match (threads, thread + 1 == threads) {
                (1, _) => "engine".to_owned(),
                (_, true) => "ingress".to_owned(),
                (2, _) => "egress".to_owned(),
                _ => format!("egress{thread}"),
            };
            let (settings, slow_path) = (Arc::clone(&settings), Arc::clone(&slow_path));
            let forwarder = Forwarder::new(thread, settings, Linux { socket }, slow_path, Arc::clone(&sabotage));
            Worker::new(&name, forwarder, spinning).map(Arc::new)
        });
        let workers = workers.collect::<Result<Vec<_>, _>>()?;
        if let Some(inward) = workers.last() {
            inward.watch_socket(socket).map_err(std::io::Error::from_raw_os_error)?;
        }
        let control = Mutex::new(Control { place: Place::default(), serial: 0, threads: Vec::new() });
        let sightings = Arc::new(Sightings::default());
        Ok(Engine { settings, socket, workers, control, slow_path, sightings, sabotage })
    }

    /// Who reads an attachment.
    fn reader(&self, slot: Slot) -> &Worker {
        &self.workers[slot % (self.workers.len() - 1).max(1)]
    }

    /// Hand the place to every thread, each between two of its batches.
    fn publish(&self, place: &Place, leaving: &[Slot]) {
        for worker in &self.workers {
            let place = place.clone();
            let was = worker.between_batches(|forwarder| forwarder.swap_place(place, leaving, now_ns() as f64 / 1e9));
            drop(was); // not while the thread waits: it may be the last to hold a large table
        }
    }

    // Routes

    /// Swap the whole snapshot in. Peers no longer in it are unknown from the next batch on.
    pub fn replace_routes(&self, new: NewRoutes) {
        let mut control = self.control.lock();
        let mut peers: Vec<Option<Arc<Peer>>> = Vec::new();
        let mut by_endpoint = Map::default();
        let mut by_host: Map<IpAddr, Option<Slot>> = Map::default();
        for peer in new.peers {
            peers.resize(peers.len().max(peer.slot + 1), None);
            let mtu_bytes = self.settings.mtu_bytes;
            peers[peer.slot] = Some(match control.place.peer(peer.slot).filter(|same| same.serial == peer.serial) {
                Some(same) if same.known == peer.known => Arc::clone(same),
                Some(same) => Arc::new(same.knowing(peer.known, mtu_bytes)),
                None => Arc::new(Peer::new(peer.serial, peer.endpoint, peer.known, mtu_bytes)),
            });
            by_endpoint.insert(peer.endpoint, peer.slot);
            by_host.entry(peer.endpoint.ip()).and_modify(|several| *several = None).or_insert(Some(peer.slot));
        }
        let mut next = control.place.clone();
        next.peers = Arc::new(peers);
        next.routes = Arc::new(Routes {
            table: Table::new(&new.entries),
            leads: new.leads,
            by_endpoint,
            by_host,
            egress: new.egress,
            node_addresses: new.node_addresses.into_iter().map(Holding::from).collect(),
            epoch: new.epoch,
        });
        let leaving = control.place.peers_leaving(&next);
        self.publish(&next, &leaving);
        control.place = next;
    }

    /// Take the path to a peer for smaller than it was.
    pub fn lower_mtu(&self, peer: Party, mtu_bytes: usize) {
        let control = self.control.lock();
        if let Some(known) = control.place.peer(peer.slot).filter(|known| known.serial == peer.serial) {
            known.lower_mtu(mtu_bytes, now_ns());
            let carries = known.mtu_bytes();
            for worker in &self.workers {
                worker.between_batches(|forwarder| {
                    forwarder.drops.iter_mut().for_each(|drops| drops.amend(peer, carries));
                });
            }
        }
    }

    /// Return the overlay MTU of the path to a peer.
    pub fn mtu_of(&self, peer: Party) -> Option<usize> {
        let control = self.control.lock();
        control.place.peer(peer.slot).filter(|known| known.serial == peer.serial).map(|known| known.mtu_bytes())
    }

    // Attachments

    /// Carry packets of an attachment in a slot that is free; return its serial.
    pub fn attach(&self, new: NewPort) -> Result<u64, Errno> {
        let mut control = self.control.lock();
        let now_s = now_ns() as f64 / 1e9;
        let serial = control.serial + 1;
        let port = Port {
            serial,
            number: new.number,
            fd: new.fd,
            addresses: new.addresses.into_iter().map(Holding::from).collect(),
            is_node: new.is_node,
            mtu_bytes: new.mtu_bytes,
            egress: new.egress,
            policer: new.ingress.map(|limit| Mutex::new(Bucket::new(limit, now_s))),
            lost: AtomicBool::new(false),
        };
        self.reader(new.slot).watch(new.fd, new.slot)?; // may fail, and then nothing was done
        control.serial = serial;
        let place = &mut control.place;
        place.ports.resize(place.ports.len().max(new.slot + 1), None);
        let mut holders = Holders::clone(&place.holders);
        holders.by_address.extend(port.addresses.iter().map(|&address| (address, new.slot)));
        if port.is_node {
            holders.node = Some(new.slot);
        }
        place.holders = Arc::new(holders);
        place.ports[new.slot] = Some(Arc::new(port));
        self.publish(place, &[]);
        Ok(serial)
    }

    /// Stop carrying; return the final count. Afterwards the fd is the caller's.
    pub fn detach(&self, slot: Slot) -> Option<Tally> {
        let mut control = self.control.lock();
        let port = control.place.ports.get_mut(slot)?.take()?;
        let mut holders = Holders::clone(&control.place.holders);
        holders.by_address.retain(|_, holder| *holder != slot);
        if holders.node == Some(slot) {
            holders.node = None;
        }
        control.place.holders = Arc::new(holders);
        let mut last = Tally::default();
        for worker in &self.workers {
            let place = control.place.clone();
            let was = worker.between_batches(|forwarder| {
                worker.unwatch(port.fd, slot);
                if let Some(Some(account)) = forwarder.ports.get(slot) {
                    last.add(&account.tally);
                }
                forwarder.swap_place(place, &[], now_ns() as f64 / 1e9)
            });
            drop(was);
        }
        Some(last)
    }

    // Decisions

    /// Say what would become of an IP packet from that source, which must be there.
    pub fn decide(&self, packet: &[u8], source: Origin) -> Way {
        let control = self.control.lock();
        let place = &control.place;
        let Some(header) = parse_ip(packet) else { return Way::Drop(DropReason::Malformed) };
        let way = place.way(&header.addresses, source);
        let (limit_bytes, target) = match way {
            Way::Local(slot) => (place.port(slot).map(|port| port.mtu_bytes), Origin::Port(slot)),
            Way::Tunnel(slot) => (place.peer(slot).map(|peer| peer.mtu_bytes()), Origin::Peer(slot)),
            _ => return way,
        };
        let hop = !(place.is_node(source) || place.is_node(target));
        match transit(&header, packet.len(), limit_bytes.unwrap_or(0), hop) {
            Ok(()) => way,
            Err(reason) => Way::Reject(reason),
        }
    }

    /// Send a packet of the router's own, about one that a thread refused.
    pub fn emit(&self, thread: usize, packet: &[u8], about: Origin, serial: u64) -> bool {
        let worker = &self.workers[thread.min(self.workers.len() - 1)];
        worker.between_batches(|forwarder| forwarder.emit(packet, about, serial)).is_ok()
    }

    // Running

    pub fn start(&self) -> std::io::Result<()> {
        let mut control = self.control.lock();
        for worker in &self.workers {
            worker.reset();
            control.threads.push(spawn(worker)?);
        }
        Ok(())
    }

    /// End the threads, each after its batch.
    pub fn stop(&self) {
        let threads = std::mem::take(&mut self.control.lock().threads);
        self.workers.iter().for_each(|worker| worker.stop());
        for thread in threads {
            let _ = thread.join(); // a panic in it was counted where it was caught
        }
    }

    /// Handle at most `budget` waiting reads in the caller's thread; only while not started.
    pub fn forward(&self, budget: usize) -> usize {
        self.workers.iter().fold(0, |done, worker| done + worker.poll(budget - done))
    }

    /// Let the next batch meet a bug: for tests of what happens then.
    pub fn sabotage(&self) {
        self.sabotage.store(true, Relaxed);
    }

    /// Return everything counted so far, each thread between two batches.
    pub fn counters(&self) -> Counters {
        let control = self.control.lock();
        let mut counters = Counters { socket_drops: socket_drops(self.socket), ..Default::default() };
        counters.ports.resize(control.place.ports.len(), Tally::default());
        counters.peers.resize(control.place.peers.len(), Tally::default());
        for worker in &self.workers {
            counters.restarts += worker.restarts();
            worker.between_batches(|forwarder| {
                let ports = counters.ports.iter_mut().zip(&forwarder.ports);
                for (sum, account) in ports.chain(counters.peers.iter_mut().zip(&forwarder.peers)) {
                    if let Some(account) = account {
                        sum.add(&account.tally);
                    }
                }
                counters.strangers.add(&forwarder.strangers);
                counters.gone.add(&forwarder.gone);
                counters.suppressed += forwarder.suppressed;
                counters.batches.iter_mut().zip(forwarder.batches).for_each(|(sum, count)| *sum += count);
            });
        }
        counters
    }

    // What is told of single packets

    /// Return what was dropped lately, of each direction the flows that were dropped last; the newest first.
    pub fn drops(&self) -> Vec<Dropped> {
        let mut directions = [Vec::new(), Vec::new()];
        for worker in &self.workers {
            worker.between_batches(|forwarder| {
                for (all, drops) in directions.iter_mut().zip(&forwarder.drops) {
                    all.extend(drops.newest_first().copied());
                }
            });
        }
        let newest_first = |drops: &mut Vec<Dropped>| drops.sort_by_key(|one| std::cmp::Reverse(one.last_ns));
        for all in &mut directions {
            newest_first(all);
            all.truncate(DROPS_KEPT);
        }
        let mut all = directions.concat();
        newest_first(&mut all);
        all
    }

    /// Return the numbers of attachments that drops and sightings tell of.
    pub fn told_of(&self) -> Vec<u64> {
        let mut names: Vec<Named> = self.drops().iter().map(|one| one.cause.source).collect();
        self.sightings.names(&mut names);
        let number = |name| if let Named::Port(number) = name { Some(number) } else { None };
        let mut numbers: Vec<u64> = names.into_iter().filter_map(number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers
    }

    /// See packets by these taps from now on, by no others.
    pub fn watch(&self, taps: Vec<Tap>) {
        let taps: Vec<Arc<Tap>> = taps.into_iter().map(Arc::new).collect();
        let _one_at_a_time = self.control.lock();
        for worker in &self.workers {
            let seed = RandomState::default().hash_one(worker.restarts());
            let watching = (!taps.is_empty()).then(|| Box::new(Watching::new(&taps, &self.sightings, seed)));
            let was = worker.between_batches(|forwarder| std::mem::replace(&mut forwarder.watching, watching));
            drop(was);
        }
        self.sightings.changed();
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop();
    }
}

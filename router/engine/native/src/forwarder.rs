//! What one thread knows and counts: its view of the node, an account for each attachment and peer, its buffers.
//!
//!     egress.rs   TUN fds → table → TUN fd | socket        sender.rs       trains to the socket
//!     ingress.rs  socket  → table → TUN fd                 exceptions.rs   the way to the slow path
//!     fates.rs    what becomes of packets is counted, remembered in drops.rs, seen by taps.rs

use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::bucket::Bucket;
use crate::decide::Place;
use crate::drops::{Cause, DropLog};
use crate::egress::EgressSpace;
use crate::exceptions::SlowPath;
use crate::fates::BATCH_BOUNDS;
use crate::ingress::IngressSpace;
use crate::kernel::{EINVAL, Kernel};
use crate::model::{DropReason, Limit, Named, Origin, Slot, Tally, Way};
use crate::taps::Watching;
use crate::view::Port;
use crate::wire::fragment::fragment;
use crate::wire::geneve;
use crate::wire::packet::{Addresses, VNET_BYTES, finish_checksum, parse_ip};

/// Most reads from one attachment or from the socket before others get their turn.
pub const BATCH_PACKETS: usize = 64;
/// Most bytes read from one of them before others get their turn.
pub const BATCH_BYTES: usize = 512 * 1024;
/// A shaper holds that much of its rate at least: woken by a clock of whole milliseconds, it would lose what comes between.
const LEAST_SHAPED_S: f64 = 0.005;

/// What an engine is told once.
#[derive(Clone, Debug)]
pub struct Settings {
    pub vni: u32,
    pub mtu_bytes: usize,
    pub icmp_errors_per_s: u32,
    pub max_segments: usize,
    pub tun_checksum: bool,
    pub tun_tso: bool,
    pub tun_uso: bool,
    pub udp_segment: bool,
}

/// How often something may happen: tokens, and when they were counted.
#[derive(Clone, Copy, Debug)]
struct Rate {
    tokens: f64,
    counted_ns: u64,
}

/// What one thread keeps of a source and sink of packets.
#[derive(Clone, Debug)]
pub struct Account {
    pub serial: u64,
    pub tally: Tally,
    /// The flow seen last and where it leads, under one state of the place.
    memo: Option<(u64, Addresses, Way)>,
    errors: Rate,
}

impl Account {
    fn new(serial: u64, icmp_errors_per_s: u32) -> Self {
        let errors = Rate { tokens: f64::from(icmp_errors_per_s), counted_ns: 0 };
        Account { serial, tally: Tally::default(), memo: None, errors }
    }

    /// Take a token for an ICMP error (RFC 4443 section 2.4 f), or return false when there is none.
    pub fn may_tell(&mut self, per_s: u32, now_ns: u64) -> bool {
        let passed_s = now_ns.saturating_sub(self.errors.counted_ns) as f64 / 1e9;
        let tokens = (self.errors.tokens + passed_s * f64::from(per_s)).min(f64::from(per_s));
        let allowed = tokens >= 1.0;
        self.errors = Rate { tokens: tokens - f64::from(u8::from(allowed)), counted_ns: now_ns };
        allowed
    }
}

/// By slot; opened by the first packet.
pub type Accounts = Vec<Option<Box<Account>>>;

/// An attachment that is in debt, and when it may be read again.
#[derive(Clone, Copy, Debug)]
pub struct Pause {
    pub slot: Slot,
    pub due_ns: u64,
}

pub struct Forwarder<K> {
    pub thread: usize,
    pub settings: Arc<Settings>,
    pub kernel: K,
    pub place: Place,
    /// Of `place`, so far.
    changes: u64,
    pub slow_path: Arc<SlowPath>,
    /// Of those only that were heard of.
    pub ports: Accounts,
    pub peers: Accounts,
    pub shapers: Vec<Option<Bucket>>,
    pub strangers: Tally,
    pub gone: Tally,
    pub suppressed: u64,
    /// By the classes of `BATCH_BOUNDS`.
    pub batches: [u64; BATCH_BOUNDS.len()],
    /// Of what attachments sent, and of what came from the underlay.
    pub drops: [DropLog; 2],
    /// None while there are no taps.
    pub watching: Option<Box<Watching>>,
    /// All that was read and received.
    pub moved_bytes: u64,
    pub merge_tcp: bool,
    pub merge_udp: bool,
    /// Super-packets a TUN refused since one was taken.
    pub refused: u32,
    /// Whose train is at hand, and how many packets of its will have been received when it is done.
    pub at_hand: Option<(Origin, u64)>,
    pub egress: Option<Box<EgressSpace>>,
    pub ingress: Option<Box<IngressSpace>>,
    /// Set by a test: the next batch meets a bug.
    pub sabotage: Arc<AtomicBool>,
}

impl<K: Kernel> Forwarder<K> {
    pub fn new(
        thread: usize,
        settings: Arc<Settings>,
        kernel: K,
        slow_path: Arc<SlowPath>,
        sabotage: Arc<AtomicBool>,
    ) -> Self {
        let mut forwarder = Forwarder {
            thread,
            kernel,
            place: Place::default(),
            changes: 0,
            slow_path,
            ports: Vec::new(),
            peers: Vec::new(),
            shapers: Vec::new(),
            strangers: Tally::default(),
            gone: Tally::default(),
            suppressed: 0,
            batches: [0; BATCH_BOUNDS.len()],
            drops: Default::default(),
            watching: None,
            moved_bytes: 0,
            merge_tcp: settings.tun_checksum && settings.tun_tso,
            merge_udp: settings.tun_checksum && settings.tun_uso,
            refused: 0,
            at_hand: None,
            egress: None,
            ingress: None,
            sabotage,
            settings,
        };
        forwarder.renew();
        forwarder
    }

    /// Make the buffers anew.
    fn renew(&mut self) {
        self.egress = Some(Box::new(EgressSpace::new(&self.settings)));
        self.ingress = Some(Box::new(IngressSpace::new(&self.settings)));
    }

    /// Begin afresh after a bug: packets that were in the batch are counted as lost to it, everything else goes on.
    pub fn recover(&mut self) {
        self.changes += 1;
        self.renew();
        if let Some((source, due)) = self.at_hand.take() {
            let tally = self.tally(source);
            tally.received_packets = tally.received_packets.max(due);
        }
        let ports = self.ports.iter_mut().enumerate().map(|(slot, account)| (Origin::Port(slot), account));
        let peers = self.peers.iter_mut().enumerate().map(|(slot, account)| (Origin::Peer(slot), account));
        let mut losses: Vec<(Named, u64)> = Vec::new();
        for (origin, account) in ports.chain(peers) {
            if let (Some(account), Some(named)) = (account, self.place.named(origin)) {
                losses.push((named, account.tally.settle_failure()));
            }
        }
        self.strangers.settle_failure();
        for (source, lost) in losses.into_iter().filter(|&(_, lost)| lost > 0) {
            self.note(Cause { source, reason: DropReason::EngineFailed, flow: None }, lost, 0, 0, None);
        }
        self.hand_over();
    }

    // What changes between batches

    /// Take the place as it is now; the accounts of those who left are closed into `gone`.
    pub fn take_place(&mut self, place: Place, now_s: f64) -> Place {
        let leaving = self.place.peers_leaving(&place);
        self.swap_place(place, &leaving, now_s)
    }

    /// Do so knowing which peers leave: takes no longer for more of those who stay. Return the place as it was, which
    /// may take long to free.
    pub fn swap_place(&mut self, place: Place, leaving: &[Slot], now_s: f64) -> Place {
        self.shapers.resize_with(place.ports.len(), || None);
        for slot in 0..place.ports.len().max(self.ports.len()) {
            let (now, was) = (place.port(slot), self.place.port(slot));
            if now.map(|port| port.serial) == was.map(|port| port.serial) {
                continue;
            }
            close(&mut self.ports, slot, &mut self.gone);
            let limit = now.and_then(|port| port.egress);
            if let Some(shaper) = self.shapers.get_mut(slot) {
                *shaper = limit.map(|limit| Bucket::new(shaped(limit), now_s));
            }
        }
        leaving.iter().for_each(|&slot| close(&mut self.peers, slot, &mut self.gone));
        self.changes += 1;
        std::mem::replace(&mut self.place, place)
    }

    // Accounts

    /// The account of a source; None for who is not there, and for the router.
    pub fn account(&mut self, origin: Origin) -> Option<&mut Account> {
        self.books(origin).0
    }

    /// The tally of a source; whoever is not there any more counts among the gone.
    pub fn tally(&mut self, origin: Origin) -> &mut Tally {
        let (account, gone) = self.books(origin);
        account.map_or(gone, |account| &mut account.tally)
    }

    /// The account of a source, and where counts go that have none.
    fn books(&mut self, origin: Origin) -> (Option<&mut Account>, &mut Tally) {
        let (place, per_s) = (&self.place, self.settings.icmp_errors_per_s);
        let account = match origin {
            Origin::Port(slot) => open(&mut self.ports, slot, || place.port(slot).map(|port| port.serial), per_s),
            Origin::Peer(slot) => open(&mut self.peers, slot, || place.peer(slot).map(|peer| peer.serial), per_s),
            Origin::Router => None,
        };
        (account, &mut self.gone)
    }

    /// Decide by addresses; the flow seen last is remembered.
    pub fn way(&mut self, addresses: Addresses, origin: Origin) -> Way {
        let changes = self.changes;
        if let Some((seen, known, way)) = self.account(origin).and_then(|account| account.memo)
            && seen == changes
            && known == addresses
        {
            return way;
        }
        let way = self.place.way(&addresses, origin);
        if let Some(account) = self.account(origin) {
            account.memo = Some((changes, addresses, way));
        }
        way
    }

    // Exceptions

    /// Send a packet of the router's own where the table leads; `about` is whose packet it tells of.
    pub fn emit(&mut self, packet: &[u8], about: Origin, serial: u64) -> Result<(), DropReason> {
        let header = parse_ip(packet).ok_or(DropReason::Malformed)?;
        self.tick();
        match self.place.way(&header.addresses, Origin::Router) {
            Way::Drop(reason) | Way::Reject(reason) => return Err(reason),
            way => self.send_own(Origin::Router, packet, way)?,
        }
        self.hand_over();
        match self.account(about) {
            Some(account) if account.serial == serial => account.tally.icmp_errors += 1,
            _ => self.gone.icmp_errors += 1,
        }
        Ok(())
    }

    /// Cut an IPv4 packet of a source for a smaller link and send the pieces; the first failure ends it.
    ///
    /// `partial` is where a checksum is still to be finished, as only whole packets can be.
    pub fn forward_in_fragments(
        &mut self,
        source: Origin,
        packet: &[u8],
        partial: Option<(u16, u16)>,
        way: Way,
        mtu_bytes: usize,
    ) -> Result<(), DropReason> {
        let mut whole = packet.to_vec();
        if let Some((start, offset)) = partial
            && !finish_checksum(&mut whole, start, offset)
        {
            return Err(DropReason::Malformed);
        }
        let pieces = fragment(&whole, mtu_bytes);
        if pieces.is_empty() {
            return Err(DropReason::Malformed);
        }
        pieces.iter().try_for_each(|piece| self.send_own(source, piece, way))
    }

    /// Send a packet that the router made itself, of a source's or of its own.
    fn send_own(&mut self, source: Origin, packet: &[u8], way: Way) -> Result<(), DropReason> {
        match way {
            Way::Local(slot) => {
                let frame = [IoSlice::new(&[0; VNET_BYTES]), IoSlice::new(packet)];
                self.write(slot, &frame, 1, packet.len())?;
            }
            Way::Tunnel(slot) => {
                let version = packet[0] >> 4;
                let Some(peer) = self.place.peer(slot).cloned() else { return Err(DropReason::NoRoute) };
                let mut datagram = if peer.known.offload {
                    geneve::encode(self.settings.vni, version, 0, 0, 0, 0, self.place.routes.epoch).to_vec()
                } else {
                    geneve::encode_plain(self.settings.vni, version).to_vec()
                };
                datagram.extend_from_slice(packet);
                self.send_one(slot, &peer, &[IoSlice::new(&datagram)])?;
                let tally = self.tally(Origin::Peer(slot));
                tally.sent_packets += 1;
                tally.sent_bytes += packet.len() as u64;
            }
            Way::Drop(reason) | Way::Reject(reason) => return Err(reason),
        }
        self.see_after(source, way, 1, &[packet]);
        Ok(())
    }

    /// Write a frame (virtio header, IP packet) to a TUN and count it.
    pub fn write(
        &mut self,
        slot: Slot,
        frame: &[IoSlice],
        packets: u64,
        packet_bytes: usize,
    ) -> Result<(), DropReason> {
        let Some(port) = self.place.port(slot) else { return Err(DropReason::AttachmentDown) };
        if !admitted(port, &mut self.kernel, packet_bytes) {
            return Err(DropReason::RateLimited);
        }
        match self.kernel.write(port.fd, frame) {
            Ok(()) => {
                let tally = self.tally(Origin::Port(slot));
                tally.sent_packets += packets;
                tally.sent_bytes += packet_bytes as u64;
                Ok(())
            }
            // Virtio header and packet do not fit together (virtio_net_hdr_to_skb).
            Err(EINVAL) => Err(DropReason::Malformed),
            // EIO: the device is down.
            Err(_) => Err(DropReason::AttachmentDown),
        }
    }
}

fn admitted<K: Kernel>(port: &Port, kernel: &mut K, packet_bytes: usize) -> bool {
    match &port.policer {
        None => true,
        Some(policer) => port.admits(policer, packet_bytes as u64, kernel.now_ns() as f64 / 1e9),
    }
}

fn shaped(limit: Limit) -> Limit {
    let least = (limit.bytes_per_s as f64 * LEAST_SHAPED_S) as u64;
    Limit { burst_bytes: limit.burst_bytes.max(least), ..limit }
}

/// Return the account in a slot, opened now for who has that serial if there is none yet.
fn open(
    accounts: &mut Accounts,
    slot: Slot,
    serial: impl FnOnce() -> Option<u64>,
    icmp_errors_per_s: u32,
) -> Option<&mut Account> {
    if accounts.get(slot).is_none_or(Option::is_none) {
        let account = Account::new(serial()?, icmp_errors_per_s);
        accounts.resize_with(accounts.len().max(slot + 1), || None);
        accounts[slot] = Some(Box::new(account));
    }
    accounts[slot].as_deref_mut()
}

/// Add what an account counted to those who are gone.
fn close(accounts: &mut Accounts, slot: Slot, gone: &mut Tally) {
    if let Some(left) = accounts.get_mut(slot).and_then(Option::take) {
        gone.add(&left.tally);
    }
}

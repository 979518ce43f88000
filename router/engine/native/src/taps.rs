//! Taps: copies of packets that pass, for who asked to see them (router/engine/interface.py, Tap).
//!
//!     a packet, its source and its fate → each tap: its turn? its side, party, program? → a copy
//!       → the thread's own list → at the end of the batch, all at once, the queue that Python takes from
//!
//! While there are no taps a thread has no `Watching`, and pays a test of that.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::decide::Place;
use crate::model::{DropReason, Named, Origin, Way};
use crate::view::Map;
use crate::wire::bpf::{self, Instruction};

/// Sightings that may wait to be fetched …
pub const SIGHTINGS_KEPT: usize = 16384;
/// … and bytes of packets in them; what finds no room is lost.
pub const SIGHTING_BYTES_KEPT: usize = 16 << 20;
/// What a thread has in hand before it hands it over in the midst of a batch.
const MOST_IN_HAND: usize = 512;
const MOST_BYTES_IN_HAND: usize = 1 << 20;

/// Of the router, on which a packet was seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    Before,
    After,
}

/// Whose packets a tap sees.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Whose {
    Everybody,
    /// From and to who has that slot under that serial.
    Of(Origin, u64),
    /// Who is not there.
    Nobody,
}

/// What to copy.
#[derive(Clone, Debug)]
pub struct Tap {
    pub number: u64,
    pub whose: Whose,
    pub program: Vec<Instruction>,
    pub snap_bytes: usize,
    /// One in so many is looked at.
    pub every: u64,
    pub before: bool,
    pub after: bool,
    pub dropped_only: bool,
}

impl Tap {
    fn wants(&self, glimpse: &Glimpse, place: &Place) -> bool {
        let side = match glimpse.side {
            Side::Before => self.before,
            Side::After => self.after && !self.dropped_only,
        };
        let lost = matches!(glimpse.fate, Way::Drop(_) | Way::Reject(_));
        side && (lost || !self.dropped_only)
            && match self.whose {
                Whose::Everybody => true,
                Whose::Nobody => false,
                Whose::Of(party, serial) => {
                    (glimpse.origin == party || target(glimpse.meant) == party) && place.serial(party) == Some(serial)
                }
            }
    }
}

/// Where a way leads; the router itself for nowhere.
fn target(way: Way) -> Origin {
    match way {
        Way::Local(slot) => Origin::Port(slot),
        Way::Tunnel(slot) => Origin::Peer(slot),
        Way::Reject(_) | Way::Drop(_) => Origin::Router,
    }
}

/// A packet at a moment when it can be seen.
#[derive(Clone, Copy, Debug)]
pub struct Glimpse {
    pub side: Side,
    /// The router itself for a stranger too.
    pub origin: Origin,
    pub source: Option<Named>,
    /// Where it was to go.
    pub meant: Way,
    pub fate: Way,
    pub packets: u64,
}

#[derive(Clone, Debug)]
pub struct Sighting {
    pub tap: u64,
    /// CLOCK_REALTIME.
    pub time_ns: u64,
    pub side: Side,
    pub source: Option<Named>,
    pub target: Option<Named>,
    pub fate: Way,
    pub packets: u64,
    pub packet_bytes: usize,
    pub packet: Box<[u8]>,
}

/// A tap and how one thread stands with it.
struct Watched {
    tap: Arc<Tap>,
    /// How many it passes over before it looks again.
    skips: u64,
    lost: u64,
}

/// What one thread sees by the taps in force.
pub struct Watching {
    taps: Vec<Watched>,
    random: u64,
    in_hand: Vec<Sighting>,
    bytes_in_hand: usize,
    /// The time of what is seen now; None: it is to be read again.
    time_ns: Option<u64>,
    /// The packet at hand in one piece.
    whole: Vec<u8>,
    sink: Arc<Sightings>,
}

impl Watching {
    /// `seed` is the thread's own.
    pub fn new(taps: &[Arc<Tap>], sink: &Arc<Sightings>, seed: u64) -> Self {
        let mut watching = Watching {
            taps: Vec::new(),
            random: seed | 1,
            in_hand: Vec::new(),
            bytes_in_hand: 0,
            time_ns: None,
            whole: Vec::new(),
            sink: Arc::clone(sink),
        };
        for tap in taps {
            let skips = gap(&mut watching.random, tap.every);
            watching.taps.push(Watched { tap: Arc::clone(tap), skips, lost: 0 });
        }
        watching
    }

    /// Let what is seen next have another time.
    pub fn tick(&mut self) {
        self.time_ns = None;
    }

    /// How much is in hand: where something belongs that came before what is seen from now on.
    pub fn mark(&self) -> usize {
        self.in_hand.len()
    }

    /// Let every tap look at a packet, which is given in pieces, and stands in the order where `mark` was. Return the mark
    /// of what comes next.
    pub fn look(
        &mut self,
        glimpse: &Glimpse,
        pieces: &[&[u8]],
        place: &Place,
        mark: usize,
        wall_ns: impl FnOnce() -> u64,
    ) -> usize {
        let packet_bytes: usize = pieces.iter().map(|piece| piece.len()).sum();
        let mut wall_ns = Some(wall_ns);
        self.whole.clear();
        let mut at = mark.min(self.in_hand.len());
        for Watched { tap, skips, lost } in &mut self.taps {
            if *skips > 0 {
                *skips -= 1;
                continue;
            }
            *skips = gap(&mut self.random, tap.every);
            if !tap.wants(glimpse, place) {
                continue;
            }
            if !tap.program.is_empty() {
                gather(&mut self.whole, pieces, packet_bytes);
                if bpf::run(&tap.program, &self.whole[..packet_bytes]) == 0 {
                    continue;
                }
            }
            if self.sink.full.load(Relaxed) {
                *lost += 1;
                continue;
            }
            let snap_bytes = tap.snap_bytes.min(packet_bytes);
            gather(&mut self.whole, pieces, snap_bytes);
            // What stands before others is no younger than they.
            let time_ns = match self.in_hand.get(at) {
                Some(next) => next.time_ns,
                None => *self.time_ns.get_or_insert_with(|| wall_ns.take().map_or(0, |wall_ns| wall_ns())),
            };
            let seen = Sighting {
                tap: tap.number,
                time_ns,
                side: glimpse.side,
                source: glimpse.source,
                target: place.named(target(glimpse.fate)),
                fate: glimpse.fate,
                packets: glimpse.packets,
                packet_bytes,
                packet: self.whole[..snap_bytes].into(),
            };
            self.bytes_in_hand += snap_bytes;
            self.in_hand.insert(at, seen);
            at += 1;
        }
        if self.in_hand.len() >= MOST_IN_HAND || self.bytes_in_hand >= MOST_BYTES_IN_HAND {
            self.hand_over();
        }
        at.min(self.in_hand.len())
    }

    /// Put what is in hand where Python takes it from.
    pub fn hand_over(&mut self) {
        let lost = self.taps.iter_mut().filter(|watched| watched.lost > 0);
        let lost: Vec<(u64, u64)> =
            lost.map(|watched| (watched.tap.number, std::mem::take(&mut watched.lost))).collect();
        if !self.in_hand.is_empty() || !lost.is_empty() {
            let next = Vec::with_capacity(self.in_hand.len());
            let bytes = std::mem::take(&mut self.bytes_in_hand);
            self.sink.put(std::mem::replace(&mut self.in_hand, next), bytes, lost);
        }
    }
}

/// Draw how many to pass over: `every` - 1 on average, so that nothing regular hides between two looks.
fn gap(random: &mut u64, every: u64) -> u64 {
    if every <= 1 {
        return 0;
    }
    // xorshift64 (Marsaglia 2003): enough for a lottery of packets.
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    *random % every.saturating_mul(2).saturating_sub(1)
}

/// Make `whole` begin with at least the first `most` bytes of the pieces.
fn gather(whole: &mut Vec<u8>, pieces: &[&[u8]], most: usize) {
    if whole.len() >= most {
        return;
    }
    whole.clear();
    for piece in pieces {
        whole.extend_from_slice(&piece[..piece.len().min(most - whole.len())]);
    }
}

#[derive(Default)]
struct Queue {
    /// As the threads handed them over.
    seen: Vec<Vec<Sighting>>,
    count: usize,
    bytes: usize,
    /// By tap.
    lost: Map<u64, u64>,
    /// How often `watch` was called.
    changes: u64,
}

/// What all threads have seen and nobody has fetched yet.
#[derive(Default)]
pub struct Sightings {
    queue: Mutex<Queue>,
    arrived: Condvar,
    /// Whether copying more is in vain.
    full: AtomicBool,
}

impl Sightings {
    fn put(&self, mut seen: Vec<Sighting>, mut bytes: usize, lost: Vec<(u64, u64)>) {
        let mut queue = self.queue.lock();
        for (tap, count) in lost {
            *queue.lost.entry(tap).or_default() += count;
        }
        while queue.count + seen.len() > SIGHTINGS_KEPT || queue.bytes + bytes > SIGHTING_BYTES_KEPT {
            let Some(last) = seen.pop() else { break };
            bytes -= last.packet.len();
            *queue.lost.entry(last.tap).or_default() += 1;
            self.full.store(true, Relaxed);
        }
        if !seen.is_empty() {
            queue.count += seen.len();
            queue.bytes += bytes;
            queue.seen.push(seen);
            self.arrived.notify_one();
        }
    }

    /// Take what was seen, and how many were lost by tap; wait for the first, or for other taps, at most so long.
    pub fn take(&self, timeout: Duration) -> (Vec<Sighting>, Map<u64, u64>) {
        let deadline = Instant::now() + timeout;
        let mut queue = self.queue.lock();
        let changes = queue.changes;
        while queue.seen.is_empty() && queue.changes == changes {
            if self.arrived.wait_until(&mut queue, deadline).timed_out() {
                break;
            }
        }
        (queue.count, queue.bytes) = (0, 0);
        self.full.store(false, Relaxed);
        let (seen, lost) = (std::mem::take(&mut queue.seen), std::mem::take(&mut queue.lost));
        drop(queue);
        let mut seen: Vec<Sighting> = seen.into_iter().flatten().collect();
        seen.sort_by_key(|one| one.time_ns); // each thread's are in order
        (seen, lost)
    }

    /// Name everybody that waits to be told of.
    pub fn names(&self, names: &mut Vec<Named>) {
        let queue = self.queue.lock();
        names.extend(queue.seen.iter().flatten().flat_map(|one| [one.source, one.target]).flatten());
    }

    /// End a wait: other taps are in force.
    pub fn changed(&self) {
        self.queue.lock().changes += 1;
        self.arrived.notify_all();
    }
}

/// Tell a way's reason, where it is one of no further.
pub fn reason(way: Way) -> Option<DropReason> {
    match way {
        Way::Reject(reason) | Way::Drop(reason) => Some(reason),
        Way::Local(_) | Way::Tunnel(_) => None,
    }
}

//! What was dropped lately: the flows that were dropped last, each with how many and why. Of one thread and direction.
//!
//! A fixed number of places, in the order of their last drop: a flood of flows costs a look-up each, and no memory.

use crate::exceptions::Party;
use crate::model::{DropReason, Named};
use crate::view::Map;
use crate::wire::flow::Flow;

/// Flows each direction remembers; the oldest give way.
pub const DROPS_KEPT: usize = 256;

const NONE: u16 = u16::MAX;

/// Whose packets they were, and why they went no further.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Cause {
    pub source: Named,
    pub reason: DropReason,
    /// None when they were no packets.
    pub flow: Option<Flow>,
}

/// The drops of one cause. Times are CLOCK_REALTIME.
#[derive(Clone, Copy, Debug)]
pub struct Dropped {
    pub cause: Cause,
    pub packets: u64,
    pub first_ns: u64,
    pub last_ns: u64,
    /// Of the last one, as it is on the wire.
    pub packet_bytes: usize,
    /// What the next link carries, of TOO_BIG; else 0.
    pub limit_bytes: usize,
    /// The peer whose MTU that is, where it is just being asked for.
    pub path: Option<Party>,
}

struct Place {
    dropped: Dropped,
    older: u16,
    newer: u16,
}

/// Takes no memory before the first drop.
pub struct DropLog {
    places: Vec<Place>,
    by_cause: Map<Cause, u16>,
    oldest: u16,
    newest: u16,
}

impl Default for DropLog {
    fn default() -> Self {
        DropLog { places: Vec::new(), by_cause: Map::default(), oldest: NONE, newest: NONE }
    }
}

impl DropLog {
    /// Remember that packets were dropped; only the last's sizes and time are kept.
    pub fn note(&mut self, last: Dropped) {
        let same = self.places.get(usize::from(self.newest)).is_some_and(|place| place.dropped.cause == last.cause);
        let at = if same { Some(self.newest) } else { self.by_cause.get(&last.cause).copied() };
        let Some(at) = at else { return self.add(last) };
        let known = &mut self.places[usize::from(at)].dropped;
        *known = Dropped { packets: known.packets + last.packets, first_ns: known.first_ns, ..last };
        if at != self.newest {
            self.unlink(at);
            self.link(at);
        }
    }

    fn add(&mut self, dropped: Dropped) {
        let place = Place { dropped, older: NONE, newer: NONE };
        let at = if self.places.len() < DROPS_KEPT {
            if self.places.is_empty() {
                self.places.reserve_exact(DROPS_KEPT);
                self.by_cause.reserve(DROPS_KEPT);
            }
            self.places.push(place);
            (self.places.len() - 1) as u16
        } else {
            let at = self.oldest;
            self.unlink(at);
            self.by_cause.remove(&self.places[usize::from(at)].dropped.cause);
            self.places[usize::from(at)] = place;
            at
        };
        self.by_cause.insert(dropped.cause, at);
        self.link(at);
    }

    /// Take a place out of the order.
    fn unlink(&mut self, at: u16) {
        let Place { older, newer, .. } = self.places[usize::from(at)];
        match self.places.get_mut(usize::from(older)) {
            Some(place) => place.newer = newer,
            None => self.oldest = newer,
        }
        match self.places.get_mut(usize::from(newer)) {
            Some(place) => place.older = older,
            None => self.newest = older,
        }
    }

    /// Make it the newest.
    fn link(&mut self, at: u16) {
        let was = std::mem::replace(&mut self.newest, at);
        match self.places.get_mut(usize::from(was)) {
            Some(place) => place.newer = at,
            None => self.oldest = at,
        }
        let place = &mut self.places[usize::from(at)];
        (place.older, place.newer) = (was, NONE);
    }

    /// Say what the path to a peer carries, now that it is known.
    pub fn amend(&mut self, peer: Party, mtu_bytes: usize) {
        for place in self.places.iter_mut().filter(|place| place.dropped.path == Some(peer)) {
            (place.dropped.limit_bytes, place.dropped.path) = (mtu_bytes, None);
        }
    }

    /// Everything remembered, the newest first.
    pub fn newest_first(&self) -> impl Iterator<Item = &Dropped> {
        let place = |at: u16| self.places.get(usize::from(at));
        std::iter::successors(place(self.newest), move |one| place(one.older)).map(|one| &one.dropped)
    }
}

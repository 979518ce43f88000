//! Runs of single packets, one for each peer they go to, that lie somewhere in the egress buffer: each is sent as one
//! train, from where its datagrams lie.

use std::io::IoSlice;
use std::ops::Range;

use arrayvec::ArrayVec;

use crate::model::Slot;
use crate::wire::shape::MAX_TRAIN_BYTES;

/// Most peers with a run at a time; one more sends the oldest.
const MOST_RUNS: usize = 16;
/// Most datagrams in a run, whatever the kernel takes.
pub const MOST_DATAGRAMS: usize = 128;

/// Datagrams for one peer, all of `step` bytes, the last perhaps shorter.
#[derive(Default)]
pub struct Run {
    pub peer: Slot,
    pub step: usize,
    pub count: usize,
    pub bytes: usize,
    /// Where they lie, in their order; neighbours are one range.
    ranges: ArrayVec<Range<usize>, MOST_DATAGRAMS>,
}

impl Run {
    fn takes(&self, size: usize, most: usize) -> bool {
        size <= self.step && self.count < most && self.bytes + size <= MAX_TRAIN_BYTES
    }

    fn add(&mut self, datagram: Range<usize>) {
        self.count += 1;
        self.bytes += datagram.len();
        match self.ranges.last_mut() {
            Some(last) if last.end == datagram.start => last.end = datagram.end,
            _ => self.ranges.push(datagram),
        }
    }

    /// Point at the datagrams.
    pub fn pieces<'a>(&self, buffer: &'a [u8]) -> ArrayVec<IoSlice<'a>, MOST_DATAGRAMS> {
        self.ranges.iter().map(|range| IoSlice::new(&buffer[range.clone()])).collect()
    }

    /// The first datagram.
    pub fn first<'a>(&self, buffer: &'a [u8]) -> &'a [u8] {
        self.ranges.first().map_or(&[], |range| &buffer[range.start..range.start + self.step])
    }
}

/// The runs that are open.
pub struct Runs {
    runs: [Run; MOST_RUNS],
    /// Those in use, the oldest first.
    order: ArrayVec<usize, MOST_RUNS>,
    most: usize,
}

impl Runs {
    /// At most `most_datagrams` in a run.
    pub fn new(most_datagrams: usize) -> Self {
        let most = most_datagrams.clamp(1, MOST_DATAGRAMS);
        Runs { runs: std::array::from_fn(|_| Run::default()), order: ArrayVec::new(), most }
    }

    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Return the run that must be sent before a datagram of `size` bytes for that peer can be taken in.
    pub fn in_the_way(&mut self, peer: Slot, size: usize) -> Option<usize> {
        match self.order.iter().position(|&run| self.runs[run].peer == peer) {
            Some(at) if self.runs[self.order[at]].takes(size, self.most) => None,
            Some(at) => Some(self.order.remove(at)),
            None if self.order.is_full() => Some(self.order.remove(0)),
            None => None,
        }
    }

    /// Take a datagram in, which nothing is in the way of; return its run if that can take no more, as this one is
    /// shorter.
    pub fn add(&mut self, peer: Slot, datagram: Range<usize>) -> Option<usize> {
        let size = datagram.len();
        let at = match self.order.iter().position(|&run| self.runs[run].peer == peer) {
            Some(at) => at,
            None => {
                let free = (0..MOST_RUNS).find(|run| !self.order.contains(run)).unwrap_or(0);
                let run = &mut self.runs[free];
                (run.peer, run.step, run.count, run.bytes) = (peer, size, 0, 0);
                run.ranges.clear();
                self.order.push(free);
                self.order.len() - 1
            }
        };
        let run = self.order[at];
        self.runs[run].add(datagram);
        (size < self.runs[run].step).then(|| self.order.remove(at))
    }

    /// Close the oldest run and return it.
    pub fn close(&mut self) -> Option<usize> {
        if self.order.is_empty() { None } else { Some(self.order.remove(0)) }
    }

    /// A run that was closed, until the next datagram is taken in.
    pub fn closed(&self, run: usize) -> &Run {
        &self.runs[run]
    }
}

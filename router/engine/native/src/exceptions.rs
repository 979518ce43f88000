//! The way to the slow path: what the data path meets that is no plain forward, for Python to handle
//! (router/engine/native/slow_path.py). Bounded: a flood of exceptions is counted, not kept.

use std::collections::VecDeque;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::model::{DropReason, Origin, Slot};
use crate::wire::probe;

/// Refused packets that may wait; each is at most 64 KiB.
const MOST_REFUSED: usize = 256;
/// Answers to probes: more than come in a second, and fewer than would leave the rest no room.
const MOST_ANSWERS: usize = 1024;
/// Questions that may wait beside all else (QUESTIONS_KEPT, router/engine/interface.py).
pub const QUESTIONS_KEPT: usize = 64;
/// Everything else: an event an attachment or peer, at most a few at once.
const MOST: usize = 4096;

/// An attachment or peer, told apart from another that had its slot before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Party {
    pub slot: Slot,
    pub serial: u64,
}

#[derive(Debug)]
pub enum Exception {
    /// A packet was dropped, and its sender may be told by ICMP.
    Refused {
        thread: usize,
        source: Origin,
        serial: u64,
        reason: DropReason,
        packet: Vec<u8>,
        /// What to tell as the next link's MTU; 0 for the overlay's.
        mtu_bytes: usize,
        /// The peer whose MTU to tell instead: it has just become smaller than `mtu_bytes`.
        path: Option<Party>,
    },
    /// The kernel knows a smaller path MTU to this peer than we do.
    PathTooSmall {
        peer: Party,
    },
    /// The peer answered a probe; CLOCK_MONOTONIC.
    ProbeAnswered {
        peer: Party,
        answer: probe::Header,
        received_ns: u64,
    },
    /// The peer asks, or answers, a question about a packet; CLOCK_MONOTONIC.
    QuestionCame {
        peer: Party,
        datagram: Vec<u8>,
        received_ns: u64,
    },
    AttachmentLost {
        port: Party,
        errno: i32,
    },
    OffloadFailed {
        feature: &'static str,
        peer: Option<Party>,
        errno: i32,
    },
    /// A thread met a bug; it has begun afresh.
    Failed {
        why: String,
    },
}

#[derive(Default)]
struct Queue {
    exceptions: VecDeque<Exception>,
    questions: usize,
    nudged: bool,
}

#[derive(Default)]
pub struct SlowPath {
    queue: Mutex<Queue>,
    arrived: Condvar,
}

impl SlowPath {
    /// Hand an exception over; false when there is no room.
    pub fn push(&self, exception: Exception) -> bool {
        let mut queue = self.queue.lock();
        let most = match exception {
            Exception::Refused { .. } => MOST_REFUSED,
            Exception::ProbeAnswered { .. } => MOST_ANSWERS,
            _ => MOST,
        };
        let is_question = matches!(exception, Exception::QuestionCame { .. });
        if queue.exceptions.len() >= most || (is_question && queue.questions >= QUESTIONS_KEPT) {
            return false;
        }
        queue.questions += usize::from(is_question);
        queue.exceptions.push_back(exception);
        self.arrived.notify_one();
        true
    }

    /// Take everything that waits; wait for the first, or a nudge, at most so long.
    pub fn take(&self, timeout: Duration) -> Vec<Exception> {
        let mut queue = self.queue.lock();
        let nothing = |queue: &mut Queue| queue.exceptions.is_empty() && !queue.nudged;
        self.arrived.wait_while_for(&mut queue, nothing, timeout);
        queue.nudged = false;
        queue.questions = 0;
        queue.exceptions.drain(..).collect()
    }

    /// Let a `take`, or the next one, return though nothing came.
    pub fn nudge(&self) {
        self.queue.lock().nudged = true;
        self.arrived.notify_all();
    }
}

//! A thread that waits for fds and forwards what they have, in batches. Control works between two batches: the thread hands
//! the forwarder's lock to who waits for it, and is handed it back, so neither ever waits longer than one turn of the other.

use std::os::fd::RawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::*};
use std::thread;

use parking_lot::{Mutex, MutexGuard};

use crate::exceptions::Exception;
use crate::forwarder::{BATCH_BYTES, BATCH_PACKETS, Forwarder, Pause};
use crate::kernel::{Errno, Linux, Poller, WOKEN, now_ns};
use crate::load::Load;
use crate::model::{Origin, Slot};
use crate::spin::{Spin, Spinning};

/// What the poller says for the underlay socket; attachments are told by their slots.
const SOCKET: u64 = u64::MAX - 1;

pub struct Worker {
    name: String,
    forwarder: Mutex<Forwarder<Linux>>,
    poller: Poller,
    stopping: AtomicBool,
    pauses: Mutex<Vec<Pause>>,
    spinning: Spinning,
    restarts: AtomicUsize,
}

impl Worker {
    pub fn new(name: &str, forwarder: Forwarder<Linux>, spinning: Spinning) -> std::io::Result<Self> {
        Ok(Worker {
            name: name.to_owned(),
            forwarder: Mutex::new(forwarder),
            poller: Poller::new()?,
            stopping: AtomicBool::new(false),
            pauses: Mutex::new(Vec::new()),
            spinning,
            restarts: AtomicUsize::new(0),
        })
    }

    pub fn restarts(&self) -> usize {
        self.restarts.load(Relaxed)
    }

    // For the control side

    /// Do something with the forwarder between two batches.
    pub fn between_batches<T>(&self, work: impl FnOnce(&mut Forwarder<Linux>) -> T) -> T {
        let mut forwarder = self.forwarder.lock();
        let result = work(&mut forwarder);
        MutexGuard::unlock_fair(forwarder);
        result
    }

    pub fn watch_socket(&self, socket: RawFd) -> Result<(), Errno> {
        self.poller.watch(socket, SOCKET)
    }

    pub fn watch(&self, fd: RawFd, slot: Slot) -> Result<(), Errno> {
        self.poller.watch(fd, slot as u64)
    }

    /// Watch an attachment no more, whether it is paused or not; for use between two batches.
    pub fn unwatch(&self, fd: RawFd, slot: Slot) {
        self.pauses.lock().retain(|pause| pause.slot != slot);
        self.poller.unwatch(fd);
    }

    pub fn stop(&self) {
        self.stopping.store(true, Release);
        self.poller.wake();
    }

    /// Make ready to run (again).
    pub fn reset(&self) {
        self.stopping.store(false, Release);
    }

    // The thread

    /// Forward until stopped.
    pub fn run(&self) {
        let mut ready = Vec::new();
        let mut spin = Spin::new(self.spinning);
        let mut load = Load::default();
        while !self.stopping.load(Acquire) {
            let due_ms = self.resume();
            let spins = spin.goes_on();
            self.poller.wait(&mut ready, if spins { 0 } else { due_ms });
            if ready.is_empty() && spins {
                spin.make_way();
            }
            let (mut reads, mut moved_bytes) = (0, 0);
            for &token in &ready {
                if token == WOKEN {
                    self.poller.drain_wake();
                    continue;
                }
                let batch = self.batch(token, BATCH_PACKETS);
                (reads, moved_bytes) = (reads + batch.0, batch.1);
            }
            spin.came(reads);
            if reads > 0 {
                load.note(reads, moved_bytes);
            }
        }
    }

    /// Run batches of whatever is readable now until `budget` reads are done; return how many there were.
    pub fn poll(&self, budget: usize) -> usize {
        let mut done = 0;
        let mut ready = Vec::new();
        while done < budget {
            let before = done;
            self.resume();
            self.poller.wait(&mut ready, 0);
            for &token in &ready {
                if token != WOKEN && done < budget {
                    done += self.batch(token, BATCH_PACKETS.min(budget - done)).0;
                }
            }
            if done == before {
                break;
            }
        }
        done
    }

    /// Run a batch; return its reads, and the bytes moved by all batches so far. One that panicked counts as one read.
    fn batch(&self, token: u64, most: usize) -> (usize, u64) {
        let mut forwarder = self.forwarder.lock();
        let work = AssertUnwindSafe(|| match token {
            SOCKET => forwarder.ingress_batch(most),
            slot => self.drain(&mut forwarder, slot as Slot, most),
        });
        let reads = catch_unwind(work).unwrap_or_else(|panic| {
            let why = panic.downcast_ref::<&str>().map(|why| (*why).to_owned());
            let why = why.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
            forwarder.recover();
            self.restarts.fetch_add(1, Relaxed);
            forwarder.slow_path.push(Exception::Failed { why: format!("{}: {why}", self.name) });
            1
        });
        let moved_bytes = forwarder.moved_bytes;
        MutexGuard::unlock_fair(forwarder); // to who waits, before this thread asks again
        (reads, moved_bytes)
    }

    /// Read an attachment as its limit lets it; in debt, leave the rest in its interface until that is paid.
    fn drain(&self, forwarder: &mut Forwarder<Linux>, slot: Slot, most: usize) -> usize {
        let Some(port) = forwarder.place.port(slot).cloned() else { return 0 };
        let shaper = forwarder.shapers.get_mut(slot).and_then(Option::as_mut);
        let Some(tokens) = shaper.map(|shaper| shaper.tokens(now_ns() as f64 / 1e9)) else {
            let reads = forwarder.egress_batch(slot, most, BATCH_BYTES);
            if port.lost.load(Relaxed) {
                self.poller.unwatch(port.fd);
            }
            return reads;
        };
        let mut reads = 0;
        let before = forwarder.tally(Origin::Port(slot)).received_bytes;
        if tokens >= 1.0 {
            reads = forwarder.egress_batch(slot, most, (tokens as usize).min(BATCH_BYTES));
        }
        let taken = forwarder.tally(Origin::Port(slot)).received_bytes - before;
        if let Some(shaper) = forwarder.shapers.get_mut(slot).and_then(Option::as_mut) {
            shaper.take(taken);
            let wait_s = shaper.wait_s();
            if wait_s > 0.0 {
                self.poller.unwatch(port.fd);
                self.pauses.lock().push(Pause { slot, due_ns: now_ns() + (wait_s * 1e9) as u64 });
            }
        }
        if port.lost.load(Relaxed) {
            self.unwatch(port.fd, slot);
        }
        reads
    }

    /// Watch again who has paused long enough; return the milliseconds until the next is due, -1 when none is.
    fn resume(&self) -> i32 {
        let mut pauses = self.pauses.lock();
        if pauses.is_empty() {
            return -1;
        }
        let now = now_ns();
        let mut due: Vec<Pause> = Vec::new();
        pauses.retain(|pause| {
            let waits = pause.due_ns > now;
            if !waits {
                due.push(*pause);
            }
            waits
        });
        let next_ns = pauses.iter().map(|pause| pause.due_ns - now).min();
        drop(pauses);
        if !due.is_empty() {
            // Under the lock: an attachment that leaves meanwhile must not be watched again.
            self.between_batches(|forwarder| {
                for pause in &due {
                    if let Some(port) = forwarder.place.port(pause.slot) {
                        let _ = self.poller.watch(port.fd, pause.slot as u64);
                    }
                }
            });
        }
        next_ns.map_or(-1, |ns| i32::try_from(ns.div_ceil(1_000_000)).unwrap_or(i32::MAX))
    }
}

/// Start a thread for a worker.
pub fn spawn(worker: &Arc<Worker>) -> std::io::Result<thread::JoinHandle<()>> {
    let mine = Arc::clone(worker);
    thread::Builder::new().name(worker.name.clone()).spawn(move || mine.run())
}

//! A thread that waits for fds and forwards what they have, in batches. Control works between two batches: it takes the
//! right of way at the gate and the forwarder's lock with it, so it never waits longer than one batch.

use std::os::fd::RawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::*};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

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
    /// How many of the control side want the forwarder.
    waiting: AtomicUsize,
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
            waiting: AtomicUsize::new(0),
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
        self.waiting.fetch_add(1, AcqRel);
        let mut forwarder = self.lock();
        self.waiting.fetch_sub(1, AcqRel);
        work(&mut forwarder)
    }

    pub fn watch_socket(&self, socket: RawFd) -> Result<(), Errno> {
        self.poller.watch(socket, SOCKET)
    }

    pub fn watch(&self, fd: RawFd, slot: Slot) -> Result<(), Errno> {
        self.poller.watch(fd, slot as u64)
    }

    /// Watch an attachment no more, whether it is paused or not; for use between two batches.
    pub fn unwatch(&self, fd: RawFd, slot: Slot) {
        self.pauses().retain(|pause| pause.slot != slot);
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

    fn lock(&self) -> MutexGuard<'_, Forwarder<Linux>> {
        self.forwarder.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn pauses(&self) -> MutexGuard<'_, Vec<Pause>> {
        self.pauses.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
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
            let mut reads = 0;
            for &token in &ready {
                if token == WOKEN {
                    self.poller.drain_wake();
                } else {
                    reads += self.batch(token, BATCH_PACKETS);
                }
            }
            spin.came(reads);
            if reads > 0 {
                load.note(reads, self.lock().moved_bytes);
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
                    done += self.batch(token, BATCH_PACKETS.min(budget - done));
                }
            }
            if done == before {
                break;
            }
        }
        done
    }

    fn batch(&self, token: u64, most: usize) -> usize {
        while self.waiting.load(Acquire) > 0 {
            thread::yield_now(); // who waits at the gate goes first
        }
        let mut forwarder = self.lock();
        let work = AssertUnwindSafe(|| match token {
            SOCKET => forwarder.ingress_batch(most),
            slot => self.drain(&mut forwarder, slot as Slot, most),
        });
        match catch_unwind(work) {
            Ok(reads) => reads,
            Err(panic) => {
                let why = panic.downcast_ref::<&str>().map(|why| (*why).to_owned());
                let why = why.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
                forwarder.recover();
                self.restarts.fetch_add(1, Relaxed);
                let thread = forwarder.thread;
                forwarder.slow_path.push(Exception::Failed { thread, why: format!("{}: {why}", self.name) });
                1
            }
        }
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
                self.pauses().push(Pause { slot, due_ns: now_ns() + (wait_s * 1e9) as u64 });
            }
        }
        if port.lost.load(Relaxed) {
            self.unwatch(port.fd, slot);
        }
        reads
    }

    /// Watch again who has paused long enough; return the milliseconds until the next is due, -1 when none is.
    fn resume(&self) -> i32 {
        let mut pauses = self.pauses();
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

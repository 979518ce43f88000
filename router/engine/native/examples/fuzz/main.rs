//! Hostile bytes at the whole of the data path, with a kernel in memory: what a night of the real one would bring, in minutes.
//!
//!     cargo run --profile checked -p podwire-engine --example fuzz -- --packets 100000000 --seed 1
//!
//! After every batch: each account balances, none went down, and they agree with what the kernel saw. Every frame and
//! datagram is checked where it leaves (memory.rs); so is what taps see, and what is remembered of drops (watch.rs). The
//! same seed and number of packets do the same again.

mod memory;
mod random;
mod site;
mod traffic;
mod watch;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind, set_hook, take_hook};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use podwire_engine::exceptions::{Exception, QUESTIONS_KEPT, SlowPath};
use podwire_engine::forwarder::{BATCH_BYTES, BATCH_PACKETS, Forwarder, Settings};
use podwire_engine::kernel::Kernel;
use podwire_engine::model::{DropReason, Tally};

use memory::{MOST_SEGMENTS, Memory, PLANTED, Seen};
use random::Random;
use site::{PORTS, Site, endpoint};
use watch::{Watch, check_drops};

/// After so many another node is made, with other settings.
const PACKETS_A_NODE: u64 = 1_000_000;

struct Options {
    packets: u64,
    seed: u64,
}

fn options() -> Options {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let mut options = Options { packets: 100_000_000, seed: since.as_nanos() as u64 & 0xFFFF_FFFF };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().and_then(|value| value.replace('_', "").parse().ok());
        match (word.as_str(), value) {
            ("--packets", Some(value)) => options.packets = value,
            ("--seed", Some(value)) => options.seed = value,
            _ => {
                eprintln!("usage: fuzz [--packets N] [--seed S]");
                std::process::exit(2);
            }
        }
    }
    options
}

struct Fuzzer {
    forwarder: Forwarder<Memory>,
    site: Site,
    random: Random,
    batches: u64,
    restarts: u64,
    last: Tally,
    /// Answers to probes, and questions, that were handed over.
    heard: u64,
    watch: Watch,
    /// What Python is handed.
    waiting: Vec<Exception>,
}

impl Fuzzer {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let max_segments = random.pick(&[MOST_SEGMENTS, MOST_SEGMENTS, 64, 5]);
        let mtu_bytes = random.pick(&[1452, 1452, 8952]);
        let settings = Arc::new(Settings {
            vni: traffic::VNI,
            mtu_bytes,
            icmp_errors_per_s: 1000,
            max_segments,
            tun_checksum: true,
            tun_tso: true,
            tun_uso: true,
            udp_segment: !random.once_in(8),
        });
        let mut kernel = Memory::new(Random::new(random.next()), max_segments, mtu_bytes);
        // Two and four are known to speak our option, three to speak plain Geneve from any port, nine is a stranger.
        kernel.from = [2, 2, 2, 2, 3, 3, 4, 4, 9].map(endpoint).to_vec();
        kernel.from.push(std::net::SocketAddr::new(endpoint(3).ip(), 33));
        let sabotage = Arc::new(AtomicBool::new(false));
        let forwarder = Forwarder::new(0, settings, kernel, Arc::new(SlowPath::default()), sabotage);
        let mut fuzzer = Fuzzer {
            forwarder,
            site: Site::new(mtu_bytes),
            random,
            batches: 0,
            restarts: 0,
            last: Tally::default(),
            heard: 0,
            watch: Watch::default(),
            waiting: Vec::new(),
        };
        fuzzer.forwarder.take_place(fuzzer.site.place(), 0.0);
        fuzzer
    }

    /// Run one batch of one direction and check everything.
    fn batch(&mut self) {
        self.batches += 1;
        if self.random.once_in(200) {
            self.site.change(&mut self.random);
            let now_s = self.forwarder.kernel.now_ns() as f64 / 1e9;
            self.forwarder.take_place(self.site.place(), now_s);
            self.forwarder.kernel.epoch = self.site.epoch();
        }
        if self.random.once_in(100) {
            self.watch.change(&mut self.random, &mut self.forwarder);
        }
        self.forwarder.kernel.failing = self.random.pick(&[0, 0, 0, 20, 100]);
        self.forwarder.kernel.panicking = self.random.pick(&[0, 0, 0, 0, 0, 0, 300]);
        self.forwarder.kernel.waiting = 1 + self.random.below(BATCH_PACKETS);
        let inward = self.random.once_in(3);
        self.forwarder.kernel.inward = inward;
        let slot = self.random.below(PORTS);
        let most_bytes = self.random.pick(&[BATCH_BYTES, BATCH_BYTES, 3000]);
        let before = self.forwarder.kernel.seen;
        let forwarder = &mut self.forwarder;
        let work = AssertUnwindSafe(|| {
            if inward {
                forwarder.ingress_batch(BATCH_PACKETS)
            } else {
                forwarder.egress_batch(slot, BATCH_PACKETS, most_bytes)
            }
        });
        let whole = match catch_unwind(work) {
            Ok(_) => true,
            Err(panic) if panic.downcast_ref::<String>().is_some_and(|why| why == PLANTED) => {
                self.forwarder.recover();
                self.restarts += 1;
                false
            }
            Err(panic) => resume_unwind(panic),
        };
        let heard = self.slow_path();
        self.check(before, inward, whole, heard);
        self.heard += heard;
        self.answer();
        if let Some(port) = self.forwarder.place.port(slot) {
            port.lost.store(false, Relaxed);
        }
    }

    fn check(&mut self, before: Seen, inward: bool, whole: bool, heard: u64) {
        let forwarder = &self.forwarder;
        let accounts = forwarder.ports.iter().chain(&forwarder.peers).flatten().map(|account| &account.tally);
        let mut sum = Tally::default();
        for tally in accounts.chain([&forwarder.strangers, &forwarder.gone]) {
            assert_eq!(tally.received_packets, tally.settled(), "an account does not balance: {tally:?}");
            sum.add(tally);
        }
        let (seen, last) = (forwarder.kernel.seen, self.last);
        let pairs = [
            (sum.received_packets, last.received_packets),
            (sum.received_bytes, last.received_bytes),
            (sum.received_frames, last.received_frames),
            (sum.delivered_packets, last.delivered_packets),
            (sum.tunnelled_packets, last.tunnelled_packets),
            (sum.sent_packets, last.sent_packets),
            (sum.sent_bytes, last.sent_bytes),
            (sum.icmp_errors, last.icmp_errors),
            (sum.control_packets, last.control_packets),
        ]; // fmt: skip
        let dropped = sum.dropped.iter().copied().zip(last.dropped);
        assert!(pairs.into_iter().chain(dropped).all(|(now, then)| now >= then), "a count went down: {last:?} {sum:?}");
        let control = sum.control_packets - last.control_packets;
        let frames = sum.received_frames - last.received_frames;
        assert_eq!(frames, seen.reads - before.reads + seen.trains - before.trains, "frames read and counted");
        if inward {
            let received = sum.received_packets - last.received_packets;
            assert_eq!(received + control, seen.rows - before.rows, "datagrams in and counted");
        }
        if whole {
            let sent = seen.sent_datagrams - before.sent_datagrams + seen.written_packets - before.written_packets;
            assert_eq!(sum.sent_packets - last.sent_packets, sent, "packets out and counted");
            let (told, questions) = (seen.answered - before.answered + heard, self.questions());
            let lost = questions == QUESTIONS_KEPT; // more may have come than there was room for
            assert!(control == told || (lost && control > told), "probes counted, and answered or handed over");
            let lost = sum.dropped[DropReason::EngineFailed as usize] - last.dropped[DropReason::EngineFailed as usize];
            assert_eq!(lost, 0, "lost to a bug that was none");
        }
        self.watch.check(&mut self.random, &last, &sum, whole);
        if self.batches.is_multiple_of(16) {
            check_drops(&self.forwarder, &sum);
        }
        self.last = sum;
    }

    fn questions(&self) -> usize {
        self.waiting.iter().filter(|waits| matches!(waits, Exception::QuestionCame { .. })).count()
    }

    /// Take what waits for Python; return how many answers to probes and questions there are.
    fn slow_path(&mut self) -> u64 {
        self.waiting = self.forwarder.slow_path.take(Duration::ZERO);
        let answers = self.waiting.iter().filter(|waits| matches!(waits, Exception::ProbeAnswered { .. }));
        (answers.count() + self.questions()) as u64
    }

    /// Do what Python does with it: answer refused packets, lower path MTUs.
    fn answer(&mut self) {
        self.forwarder.kernel.panicking = 0;
        self.forwarder.kernel.failing = 0;
        self.forwarder.kernel.inward = true;
        for exception in std::mem::take(&mut self.waiting) {
            match exception {
                Exception::Refused { source, serial, packet, .. } if self.random.once_in(4) => {
                    if let Some(answer) = answer(&packet) {
                        let _ = self.forwarder.emit(&answer, source, serial);
                    }
                }
                Exception::PathTooSmall { peer } => {
                    let known =
                        self.forwarder.place.peer(peer.slot).filter(|known| known.serial == peer.serial).cloned();
                    let now_ns = self.forwarder.kernel.now_ns();
                    let mtu_bytes = self.random.below(self.forwarder.settings.mtu_bytes);
                    known.inspect(|known| known.lower_mtu(mtu_bytes, now_ns));
                }
                _ => {}
            }
        }
        self.last = self.sum();
    }

    fn sum(&self) -> Tally {
        let accounts = self.forwarder.ports.iter().chain(&self.forwarder.peers).flatten().map(|account| &account.tally);
        accounts.chain([&self.forwarder.strangers, &self.forwarder.gone]).fold(Tally::default(), |mut sum, tally| {
            sum.add(tally);
            sum
        })
    }
}

/// A packet from the node to the refused one's source: what an ICMP error is to the data path.
fn answer(packet: &[u8]) -> Option<Vec<u8>> {
    use podwire_engine::wire::packet::*;
    let header = parse_ip(packet)?;
    let mut made = vec![0; if header.version == 4 { 60 } else { 80 }];
    if header.version == 4 {
        (made[0], made[8], made[9]) = (0x45, 64, 1);
        put16(&mut made, 2, 60);
        made[12..16].copy_from_slice(&[10, 42, 1, 1]);
        made[16..20].copy_from_slice(&packet[12..16]);
        let sum = checksum(&made[..20]);
        put16(&mut made, 10, sum);
    } else {
        (made[0], made[6], made[7]) = (0x60, 58, 64);
        put16(&mut made, 4, 40);
        made[8..12].copy_from_slice(&[0xfd, 0x42, 0, 1]);
        made[23] = 1;
        made[24..40].copy_from_slice(&packet[8..24]);
    }
    Some(made)
}

fn main() {
    let Options { packets, seed } = options();
    println!("fuzz: seed {seed}, {packets} packets");
    let hook = take_hook();
    set_hook(Box::new(move |info| {
        if info.payload().downcast_ref::<String>().is_none_or(|why| why != PLANTED) {
            hook(info);
        }
    }));
    let start = Instant::now();
    let mut nodes = Random::new(seed);
    let (mut sum, mut seen, mut restarts, mut heard) = (Tally::default(), Seen::default(), 0, 0);
    let (mut sighted, mut unseen) = (0, 0);
    let mut said = Instant::now();
    while sum.received_packets < packets {
        let most = (packets - sum.received_packets).min(PACKETS_A_NODE);
        let mut fuzzer = Fuzzer::new(nodes.next());
        while fuzzer.last.received_packets < most {
            if catch_unwind(AssertUnwindSafe(|| fuzzer.batch())).is_err() {
                let batch = fuzzer.batches;
                eprintln!("fuzz: failed after {} packets, in batch {batch} of a node", sum.received_packets);
                eprintln!("fuzz: again with: --seed {seed} --packets {packets}");
                std::process::exit(1);
            }
        }
        sum.add(&fuzzer.last);
        seen.add(&fuzzer.forwarder.kernel.seen);
        restarts += fuzzer.restarts;
        heard += fuzzer.heard;
        sighted += fuzzer.watch.seen;
        unseen += fuzzer.watch.lost;
        if said.elapsed() > Duration::from_secs(5) {
            said = Instant::now();
            let rate = sum.received_packets as f64 / start.elapsed().as_secs_f64() / 1e6;
            println!("fuzz: {} packets, {rate:.2} M/s", sum.received_packets);
        }
    }
    let elapsed_s = start.elapsed().as_secs_f64();
    let rate = sum.received_packets as f64 / elapsed_s / 1e6;
    println!("fuzz: seed {seed}, {} packets in {elapsed_s:.1} s, {rate:.2} M/s", sum.received_packets);
    let drops = DropReason::NAMES.iter().zip(sum.dropped).filter(|(_, count)| *count > 0);
    let drops: Vec<_> = drops.map(|(name, count)| format!("{name} {count}")).collect();
    println!(
        "fuzz: {} frames and trains, {} delivered, {} tunnelled, dropped: {}; {} super-packets joined, {} trains sent, \
         {} probes answered, {heard} answers and questions heard, {sighted} sightings and {unseen} lost, {} errors of the kernel, {restarts} restarts",
        sum.received_frames,
        sum.delivered_packets,
        sum.tunnelled_packets,
        drops.join(", "),
        seen.joined,
        seen.trains_sent,
        seen.answered,
        seen.errors,
    );
}

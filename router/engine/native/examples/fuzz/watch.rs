//! Who watches the fuzzed node: taps that come and go, and what must hold of all they see and of what is remembered.

use std::sync::Arc;
use std::time::Duration;

use podwire_engine::decide::Place;
use podwire_engine::drops::DROPS_KEPT;
use podwire_engine::forwarder::Forwarder;
use podwire_engine::kernel::Kernel;
use podwire_engine::model::{Named, Origin, Tally, Way};
use podwire_engine::taps::{SIGHTING_BYTES_KEPT, SIGHTINGS_KEPT, Side, Sighting, Sightings, Tap, Watching, Whose};
use podwire_engine::wire::bpf::{self, Instruction};
use podwire_engine::wire::packet::parse_ip;

use crate::random::Random;
use crate::site::{PEERS, PORTS};

#[derive(Default)]
pub struct Watch {
    sightings: Arc<Sightings>,
    taps: Vec<Arc<Tap>>,
    /// Nothing was left unfetched before this batch.
    fresh: bool,
    pub seen: u64,
    pub lost: u64,
}

impl Watch {
    /// Put other taps in force, or none.
    pub fn change<K: Kernel>(&mut self, random: &mut Random, forwarder: &mut Forwarder<K>) {
        self.fetch();
        let count = random.pick(&[0, 0, 0, 0, 1, 2, 4]);
        self.taps = (0..count).map(|number| Arc::new(tap(random, number, &forwarder.place))).collect();
        let watching = (count > 0).then(|| Box::new(Watching::new(&self.taps, &self.sightings, random.next())));
        forwarder.watching = watching;
    }

    fn fetch(&mut self) -> (Vec<Sighting>, bool) {
        let (seen, lost) = self.sightings.take(Duration::ZERO);
        self.seen += seen.len() as u64;
        self.lost += lost.values().sum::<u64>();
        (seen, lost.is_empty())
    }

    /// Fetch what was seen in a batch that went from one count to another, `whole` if it ended well, and check it.
    pub fn check(&mut self, random: &mut Random, last: &Tally, sum: &Tally, whole: bool) {
        let fresh = std::mem::replace(&mut self.fresh, !random.once_in(30));
        if !self.fresh {
            return; // nobody fetches for once
        }
        let (seen, complete) = self.fetch();
        assert!(seen.len() <= SIGHTINGS_KEPT, "{} sightings were kept", seen.len());
        let bytes: usize = seen.iter().map(|one| one.packet.len()).sum();
        assert!(bytes <= SIGHTING_BYTES_KEPT, "{bytes} bytes were kept");
        assert!(seen.is_sorted_by_key(|one| one.time_ns), "out of order");
        for one in &seen {
            check_one(one, &self.taps[one.tap as usize]);
        }
        let sees_all = self.taps.first().is_some_and(|tap| tap.every == 1 && tap.before && tap.after);
        if fresh && complete && whole && sees_all {
            check_all(&seen, last, sum);
        }
    }
}

/// The first sees all or a sample of it, the others what they ask for.
fn tap(random: &mut Random, number: u64, place: &Place) -> Tap {
    let all = Tap {
        number,
        whose: Whose::Everybody,
        program: Vec::new(),
        snap_bytes: 0xFFFF,
        every: random.pick(&[1, 1, 7]),
        before: true,
        after: true,
        dropped_only: false,
    };
    if number == 0 {
        return all;
    }
    let party = match random.below(2) {
        0 => Origin::Port(random.below(PORTS)),
        _ => Origin::Peer(random.below(PEERS)),
    };
    let whose = match place.serial(party) {
        _ if random.once_in(3) => Whose::Everybody,
        Some(serial) => Whose::Of(party, serial),
        None => Whose::Nobody,
    };
    let length = random.pick(&[0, 1, 3, 8, 40]);
    Tap {
        whose,
        program: (0..length).map(|_| instruction(random)).collect(),
        snap_bytes: random.pick(&[0, 1, 64, 128, 1500]),
        before: !random.once_in(4),
        after: !random.once_in(4),
        dropped_only: random.once_in(3),
        ..all
    }
}

/// Any: a program that makes no sense must do no harm.
fn instruction(random: &mut Random) -> Instruction {
    const USUAL: [u16; 14] = [0x30, 0x28, 0x20, 0x50, 0x48, 0xB1, 0x15, 0x25, 0x45, 0x05, 0x54, 0x0C, 0x06, 0x16];
    let code = if random.once_in(4) { random.next() as u16 } else { random.pick(&USUAL) };
    let k = random.pick(&[0, 1, 9, 16, 17, 40, 60, 1500, u32::MAX]);
    Instruction { code, jt: random.below(4) as u8, jf: random.below(4) as u8, k }
}

fn check_one(one: &Sighting, tap: &Tap) {
    assert!(tap.whose != Whose::Nobody, "seen by who watches nobody");
    assert!(if one.side == Side::Before { tap.before } else { tap.after }, "on the wrong side: {one:?}");
    assert_eq!(one.packet.len(), one.packet_bytes.min(tap.snap_bytes));
    assert!(one.packets > 0);
    let lost = matches!(one.fate, Way::Drop(_) | Way::Reject(_));
    assert_eq!(one.target.is_none(), lost, "lost, and where it went: {one:?}");
    assert!(lost || !tap.dropped_only, "{one:?}");
    let whole = one.packet.len() == one.packet_bytes;
    assert!(!whole || bpf::run(&tap.program, &one.packet) != 0, "not asked for: {one:?}");
    if one.side == Side::After {
        assert!(!lost, "handed on, and lost: {one:?}");
    }
    // A peer's segments of one super-packet are joined by its word: the first's header is that of all.
    if whole && !lost && (one.side == Side::After || matches!(one.source, Some(Named::Port(_)))) {
        assert!(parse_ip(&one.packet).is_some(), "no IP packet: {one:?}");
    }
}

/// What was seen of everything agrees with what was counted.
fn check_all(seen: &[Sighting], last: &Tally, sum: &Tally) {
    let packets = |wanted: &dyn Fn(&Sighting) -> bool| -> u64 {
        seen.iter().filter(|one| one.tap == 0 && wanted(one)).map(|one| one.packets).sum()
    };
    // Without a source: the router's own, which it sent between two batches.
    let sent = packets(&|one| one.side == Side::After && one.source.is_some());
    assert_eq!(sent, sum.sent_packets - last.sent_packets, "handed on: seen and counted");
    let delivered = packets(&|one| one.side == Side::Before && matches!(one.fate, Way::Local(_)));
    assert_eq!(delivered, sum.delivered_packets - last.delivered_packets, "delivered: seen and counted");
    let tunnelled = packets(&|one| one.side == Side::Before && matches!(one.fate, Way::Tunnel(_)));
    assert!(tunnelled >= sum.tunnelled_packets - last.tunnelled_packets, "tunnelled: seen and counted");
    let lost = packets(&|one| matches!(one.fate, Way::Drop(_) | Way::Reject(_)));
    assert_eq!(lost, dropped(sum) - dropped(last), "dropped: seen and counted");
}

fn dropped(tally: &Tally) -> u64 {
    tally.dropped.iter().sum()
}

/// Check what is remembered of drops against what was counted.
pub fn check_drops<K: Kernel>(forwarder: &Forwarder<K>, sum: &Tally) {
    let mut told = sum.dropped;
    for log in &forwarder.drops {
        let flows: Vec<_> = log.newest_first().collect();
        assert!(flows.len() <= DROPS_KEPT, "{} flows are remembered", flows.len());
        assert!(flows.iter().rev().is_sorted_by_key(|one| one.last_ns), "not the newest first");
        for one in flows {
            assert!(one.packets > 0 && one.first_ns <= one.last_ns, "{one:?}");
            let left = told[one.cause.reason as usize].checked_sub(one.packets);
            told[one.cause.reason as usize] = left.expect("more is remembered than was dropped");
        }
    }
    if sum.dropped.iter().any(|&count| count > 0) {
        assert!(told != sum.dropped, "nothing is remembered");
    }
}

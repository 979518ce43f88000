//! What is remembered of drops, what taps see, and the programs they see by: by what must hold of each.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use podwire_engine::decide::Place;
use podwire_engine::drops::{Cause, DROPS_KEPT, DropLog, Dropped};
use podwire_engine::exceptions::{Exception, Party, QUESTIONS_KEPT, SlowPath};
use podwire_engine::model::{DropReason, Named, Origin, Way};
use podwire_engine::taps::*;
use podwire_engine::wire::bpf::{Instruction, run};
use podwire_engine::wire::flow::{Flow, flow_of};
use podwire_engine::wire::packet::*;
use podwire_engine::wire::question::is_question;

fn cause(flow: u32) -> Cause {
    let addresses = Addresses::V4 { src: flow, dst: 1 };
    let flow = Some(Flow { addresses, protocol: 17, src_port: 1, dst_port: 2 });
    Cause { source: Named::Port(1), reason: DropReason::NoRoute, flow }
}

fn dropped(flow: u32, packets: u64, at_ns: u64, path: Option<Party>) -> Dropped {
    Dropped { cause: cause(flow), packets, first_ns: at_ns, last_ns: at_ns, packet_bytes: 100, limit_bytes: 9, path }
}

#[test]
fn the_flows_dropped_last_are_remembered_as_a_list_kept_by_hand_does() {
    let (mut log, mut model) = (DropLog::default(), VecDeque::<(u32, u64, u64, u64)>::new());
    let mut seed = 1u64;
    assert_eq!(log.newest_first().count(), 0);
    for now in 0..20_000 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let flow = (seed >> 33) as u32 % if now % 3000 < 1500 { 200 } else { 400 };
        log.note(dropped(flow, 2, now, None));
        let known = model.iter().position(|one| one.0 == flow).and_then(|at| model.remove(at));
        let (_, packets, first_ns, _) = known.unwrap_or((flow, 0, now, now));
        model.push_front((flow, packets + 2, first_ns, now));
        model.truncate(DROPS_KEPT);
    }
    let told: Vec<_> = log.newest_first().map(|one| (one.cause, one.packets, one.first_ns, one.last_ns)).collect();
    let expected: Vec<_> =
        model.iter().map(|&(flow, packets, first, last)| (cause(flow), packets, first, last)).collect();
    assert_eq!(told, expected);
}

#[test]
fn what_a_path_carries_is_put_in_later() {
    let mut log = DropLog::default();
    let peer = Party { slot: 3, serial: 8 };
    log.note(dropped(1, 1, 5, Some(peer)));
    log.note(dropped(2, 1, 6, Some(Party { slot: 3, serial: 9 })));
    log.amend(peer, 1300);
    log.amend(peer, 1200);
    assert_eq!(log.newest_first().map(|one| one.limit_bytes).collect::<Vec<_>>(), [9, 1300]);
}

fn tap(number: u64) -> Tap {
    let (whose, program) = (Whose::Everybody, Vec::new());
    Tap { number, whose, program, snap_bytes: 4, every: 1, before: true, after: true, dropped_only: false }
}

const LOST: Way = Way::Drop(DropReason::NoRoute);

fn glimpse(side: Side, fate: Way) -> Glimpse {
    Glimpse { side, origin: Origin::Port(0), source: Some(Named::Port(1)), meant: fate, fate, packets: 1 }
}

#[test]
fn a_thread_keeps_its_order_and_what_came_before_stands_before() {
    let sightings = Arc::new(Sightings::default());
    let mut watching = Watching::new(&[Arc::new(tap(1)), Arc::new(Tap { snap_bytes: 9, ..tap(2) })], &sightings, 7);
    let place = Place::default();
    let mark = watching.mark();
    let after = watching.look(&glimpse(Side::After, LOST), &[b"af", b"", b"ter"], &place, usize::MAX, || 50);
    assert_eq!(after, 2);
    assert_eq!(watching.look(&glimpse(Side::Before, LOST), &[b"before"], &place, mark, || 60), 2);
    assert_eq!(sightings.take(Duration::ZERO).0.len(), 0, "not before the batch is over");
    watching.hand_over();
    let (seen, lost) = sightings.take(Duration::ZERO);
    let told: Vec<_> = seen.iter().map(|one| (one.tap, one.time_ns, &*one.packet, one.packet_bytes)).collect();
    let expected: [(u64, u64, &[u8], usize); 4] =
        [(1, 50, b"befo", 6), (2, 50, b"before", 6), (1, 50, b"afte", 5), (2, 50, b"after", 5)];
    assert_eq!(told, expected);
    assert!(lost.is_empty());
}

#[test]
fn what_finds_no_room_is_counted_by_tap() {
    let sightings = Arc::new(Sightings::default());
    let mut watching = Watching::new(&[Arc::new(tap(1)), Arc::new(tap(2))], &sightings, 7);
    let look = |watching: &mut Watching, times: usize| {
        for _ in 0..times {
            watching.look(&glimpse(Side::Before, LOST), &[b"before"], &Place::default(), usize::MAX, || 1);
        }
        watching.hand_over();
    };
    look(&mut watching, SIGHTINGS_KEPT);
    let (seen, lost) = sightings.take(Duration::ZERO);
    assert_eq!(seen.len(), SIGHTINGS_KEPT);
    assert_eq!(lost.values().sum::<u64>(), SIGHTINGS_KEPT as u64);
    look(&mut watching, 1);
    let (seen, lost) = sightings.take(Duration::ZERO);
    assert_eq!((seen.len(), lost.len()), (2, 0), "there is room again");
}

#[test]
fn one_in_so_many_is_looked_at() {
    let sightings = Arc::new(Sightings::default());
    for every in [1, 2, 3, 10, 100, u64::MAX] {
        let mut watching = Watching::new(&[Arc::new(Tap { every, ..tap(1) })], &sightings, 99);
        let times = 10_000u64;
        for _ in 0..times {
            watching.look(&glimpse(Side::Before, LOST), &[b"before"], &Place::default(), usize::MAX, || 1);
        }
        watching.hand_over();
        let seen = sightings.take(Duration::ZERO).0.len() as u64;
        let expected = times / every;
        assert!(seen >= expected * 2 / 3 && seen <= expected * 3 / 2, "{seen} of {times}, one in {every}");
    }
}

#[test]
fn a_wait_ends_with_the_first_sighting_or_with_other_taps() {
    let sightings = Arc::new(Sightings::default());
    let long = Duration::from_secs(60);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| sightings.take(long).0.len());
        std::thread::sleep(Duration::from_millis(20));
        let mut watching = Watching::new(&[Arc::new(tap(1))], &sightings, 7);
        watching.look(&glimpse(Side::Before, LOST), &[b"before"], &Place::default(), usize::MAX, || 1);
        watching.hand_over();
        assert_eq!(waiting.join().expect("no panic"), 1);
        let (waiting, began) = (scope.spawn(|| sightings.take(long).0.len()), Instant::now());
        while !waiting.is_finished() {
            sightings.changed();
            std::thread::sleep(Duration::from_millis(1));
            assert!(began.elapsed() < long / 2, "still not woken");
        }
        assert_eq!(waiting.join().expect("no panic"), 0);
    });
}

#[test]
fn programs_of_any_kind_end() {
    let mut seed = 5u64;
    let mut next = move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        seed >> 24
    };
    let packet: Vec<u8> = (0..64).collect();
    let (mut matched, times) = (0, 50_000);
    for _ in 0..times {
        let program: Vec<Instruction> = (0..1 + next() % 12)
            .map(|_| {
                let code = if next() % 4 == 0 { next() as u16 } else { (next() % 256) as u16 };
                let k = if next() % 4 == 0 { next() as u32 } else { (next() % 80) as u32 };
                Instruction { code, jt: (next() % 5) as u8, jf: (next() % 256) as u8, k }
            })
            .collect();
        matched += u32::from(run(&program, &packet[..(next() % 65) as usize]) != 0);
    }
    assert!(matched > 0 && matched < times);
    assert_ne!(run(&[], &[]), 0, "no program takes everything");
}

#[test]
fn a_hop_that_was_taken_can_be_given_back() {
    for sum in 0..=0xFFFEu16 {
        let mut packet = [0u8; 20];
        (packet[0], packet[8]) = (0x45, 9);
        put16(&mut packet, 10, sum);
        let came = packet;
        decrement_hop_limit(&mut packet);
        let mut head = *packet.first_chunk::<12>().expect("twelve bytes");
        return_hop(&mut head);
        assert_eq!(head, came[..12], "{sum:#x}");
    }
}

#[test]
fn what_is_no_packet_has_no_flow() {
    let mut packet = [0u8; 60];
    for first in 0..=255u8 {
        packet[0] = first;
        for size in 0..packet.len() {
            let flow = flow_of(&packet[..size]);
            let expected = (first >> 4 == 4 && first & 15 >= 5 && size >= 20) || (first >> 4 == 6 && size >= 40);
            assert_eq!(flow.is_some(), expected, "{first:#x}, {size} bytes");
        }
    }
}

#[test]
fn questions_are_of_one_size_and_few_wait() {
    let mut asked = vec![0u8; 512];
    asked[..16].copy_from_slice(&[5, 0xC0, 0, 0, 0, 0, 7, 0, 0xFF, 0xFF, 0x83, 4, 1, 0, 2, 0]);
    assert!(is_question(&asked));
    assert!(!is_question(&asked[..511]), "cut short");
    (asked[12], asked[14], asked[15]) = (2, 0, 29);
    assert!(is_question(&asked[..29]), "a reply may be shorter");
    assert!(!is_question(&asked[..28]), "but must say something");
    asked[10] = 0x82;
    assert!(!is_question(&asked[..29]), "a probe");
    let slow_path = SlowPath::default();
    let ask =
        || Exception::QuestionCame { peer: Party { slot: 0, serial: 1 }, datagram: asked.clone(), received_ns: 1 };
    for _ in 0..2 {
        assert_eq!((0..2 * QUESTIONS_KEPT).filter(|_| slow_path.push(ask())).count(), QUESTIONS_KEPT);
        assert!(slow_path.push(Exception::Failed { why: String::new() }), "others have room beside them");
        assert_eq!(slow_path.take(Duration::ZERO).len(), QUESTIONS_KEPT + 1);
    }
}

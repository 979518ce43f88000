//! The parts that say more here than through Python: the table, the bucket and the spin, by what must hold of each.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use podwire_engine::bucket::Bucket;
use podwire_engine::exceptions::{Exception, Party, SlowPath};
use podwire_engine::model::{DropReason, Limit, Tally};
use podwire_engine::spin::{Spin, Spinning};
use podwire_engine::table::{Entry, Table};
use podwire_engine::view::{Known, Peer};
use podwire_engine::wire::fragment::fragment;
use podwire_engine::wire::geneve::{self, Encapsulation, decode, encode};
use podwire_engine::wire::packet::*;
use podwire_engine::wire::probe;
use podwire_engine::wire::shape::shift_sum;

fn entry(v6: bool, network: u128, prefix_bits: u32, value: u32) -> Entry {
    Entry { v6, network, prefix_bits, value }
}

#[test]
fn the_longest_prefix_wins_at_every_length() {
    for (v6, bits) in [(false, 32u32), (true, 128)] {
        let ones = if v6 { u128::MAX } else { u128::from(u32::MAX) };
        let entries: Vec<Entry> = (0..=bits)
            .map(|length| {
                let mask = ones.checked_shl(bits - length).unwrap_or(0) & ones;
                entry(v6, mask, length, length + 1)
            })
            .collect();
        let table = Table::new(&entries);
        let lookup = |address: u128| if v6 { table.lookup_v6(address) } else { table.lookup_v4(address as u32) };
        for length in 0..=bits {
            // The first `length` bits are ones, the next is a zero.
            let address = if length == bits { ones } else { ones & !(1 << (bits - length - 1)) };
            assert_eq!(lookup(address), length + 1, "{bits} bits, /{length}");
        }
    }
}

#[test]
fn flat_and_scattered_levels_answer_alike() {
    let near: Vec<Entry> = (0..100).map(|at| entry(false, at << 8, 24, at as u32 + 1)).collect();
    let far: Vec<Entry> = (0..100).map(|at| entry(false, at << 20, 24, at as u32 + 1)).collect();
    let (near, far) = (Table::new(&near), Table::new(&far));
    for at in 0..100u32 {
        for low in [0, 1, 255] {
            assert_eq!((near.lookup_v4(at << 8 | low), far.lookup_v4(at << 20 | low)), (at + 1, at + 1));
        }
        assert_eq!(far.lookup_v4((at << 20) + 256), 0);
    }
    assert_eq!((near.lookup_v4(100 << 8), near.lookup_v4(u32::MAX)), (0, 0));
    assert_eq!((near.lookup_v6(0), Table::default().lookup_v4(0)), (0, 0));
}

#[test]
fn a_bucket_gives_its_rate_and_no_more() {
    let limit = Limit { bytes_per_s: 1_000_000, burst_bytes: 10_000 };
    let mut bucket = Bucket::new(limit, 100.0);
    let (mut passed, mut now_s) = (0u64, 100.0);
    for _ in 0..100_000 {
        now_s += 0.0001;
        if bucket.admit(1500, now_s) {
            passed += 1500;
        }
    }
    let fair = 10_000 + 10 * 1_000_000;
    assert!((fair..fair + 1500).contains(&passed) || fair - passed < 1500, "{passed} of {fair}");
    bucket.take(50_000);
    let wait_s = bucket.wait_s();
    assert!(bucket.tokens(now_s + wait_s * 0.99) < 1.0);
    assert!(bucket.tokens(now_s + wait_s * 1.01) >= 1.0);
    assert_eq!(bucket.tokens(1e12), 10_000.0);
    assert_eq!(bucket.tokens(0.0), 10_000.0, "a clock that goes back takes nothing");
}

#[test]
fn spinning_that_is_off_never_looks() {
    let mut spin = Spin::new(Spinning { look_ns: 0, share_percent: 100 });
    for _ in 0..10 {
        assert!(!spin.goes_on());
        spin.came(1);
    }
}

#[test]
fn a_share_of_nothing_never_looks() {
    let mut spin = Spin::new(Spinning { look_ns: 1_000_000_000, share_percent: 0 });
    for _ in 0..10 {
        spin.came(1);
        assert!(!spin.goes_on());
    }
}

#[test]
fn it_looks_while_something_came_just_now() {
    let mut spin = Spin::new(Spinning { look_ns: 60_000_000_000, share_percent: 100 });
    spin.came(1);
    assert!(spin.goes_on());
    spin.came(0);
    assert!(spin.goes_on(), "nothing for less than a look");
}

#[test]
fn looking_ends_when_it_has_found_nothing_for_long() {
    let mut spin = Spin::new(Spinning { look_ns: 1_000_000, share_percent: 100 });
    spin.came(1);
    std::thread::sleep(std::time::Duration::from_millis(3));
    spin.came(0);
    assert!(!spin.goes_on(), "nothing came for three times as long as a look");
}

#[test]
fn what_a_failed_batch_had_in_hand_is_settled_both_ways() {
    let mut tally = Tally { received_packets: 10, delivered_packets: 3, ..Tally::default() };
    tally.drop(DropReason::NoRoute, 2);
    tally.settle_failure();
    assert_eq!(
        (tally.received_packets, tally.settled(), tally.dropped[DropReason::EngineFailed as usize]),
        (10, 10, 5)
    );
    let mut early = Tally { received_packets: 1, delivered_packets: 4, ..Tally::default() };
    early.settle_failure();
    assert_eq!((early.received_packets, early.settled()), (4, 4));
}

#[test]
fn every_reason_has_its_name() {
    assert_eq!(DropReason::ALL.len(), DropReason::NAMES.len());
    for (at, &reason) in DropReason::ALL.iter().enumerate() {
        assert_eq!(reason as usize, at);
    }
}

// Headers and sums

/// RFC 1071 section 4.1, word by word.
fn naive_sum(data: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in data.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    sum as u16
}

#[test]
fn sums_are_those_of_the_rfc_at_every_length() {
    let data: Vec<u8> = (0..600u32).map(|at| (at * 167 % 256) as u8).collect();
    for size in 0..data.len() {
        assert_eq!(ones_sum(&data[..size], 0), naive_sum(&data[..size]), "{size} bytes");
    }
    assert_eq!((ones_sum(&[0; 99], 0), ones_sum(&[0xFF; 99], 0), ones_sum(&[], 0)), (0, naive_sum(&[0xFF; 99]), 0));
    let long = vec![0xFF; 65_535];
    assert_eq!(ones_sum(&long, 0), naive_sum(&long));
}

#[test]
fn shifting_a_sum_is_adding_to_what_was_summed() {
    for value in [1u16, 2, 0x7FFF, 0xFFFE, 0xFFFF] {
        for by in [-65_535i64, -40, -1, 0, 1, 40, 65_535] {
            let shifted = shift_sum(value, by);
            assert_ne!(shifted, 0);
            assert_eq!((i64::from(shifted) - i64::from(value) - by).rem_euclid(0xFFFF), 0);
        }
    }
}

fn ipv4(payload: usize, options: usize, flags: u16) -> Vec<u8> {
    let mut packet = vec![0xA5; 20 + options + payload];
    packet[..20].fill(0);
    packet[0] = 0x45 + (options / 4) as u8;
    packet[20..20 + options].fill(1);
    let size = packet.len() as u16;
    put16(&mut packet, 2, size);
    put16(&mut packet, 6, flags);
    (packet[8], packet[9]) = (64, 17);
    let sum = checksum(&packet[..20 + options]);
    put16(&mut packet, 10, sum);
    packet
}

#[test]
fn every_hop_keeps_the_checksum_right() {
    for ident in (0..=0xFFFFu16).step_by(7) {
        let mut packet = ipv4(8, 0, 0x4000);
        put16(&mut packet, 4, ident);
        put16(&mut packet, 10, 0);
        let sum = checksum(&packet[..20]);
        put16(&mut packet, 10, sum);
        decrement_hop_limit(&mut packet);
        let mut again = packet.clone();
        put16(&mut again, 10, 0);
        assert_eq!(be16(&packet, 10), checksum(&again[..20]), "identification {ident}");
    }
}

#[test]
fn a_checksum_inside_the_ip_header_is_not_finished() {
    let mut four = ipv4(30, 32, 0);
    let mut six = vec![0x60; 80];
    let (before_four, before_six) = (four.clone(), six.clone());
    for start in 0..52 {
        assert!(!finish_checksum(&mut four, start, 6), "IPv4 with options, from {start}");
        assert!(start >= 40 || !finish_checksum(&mut six, start, 6), "IPv6, from {start}");
    }
    assert_eq!((four, six), (before_four, before_six));
}

#[test]
fn fragments_hold_every_byte_once() {
    for payload in [1, 8, 100, 1401, 9000, 65_000] {
        for mtu in [68, 576, 1280, 1452] {
            let packet = ipv4(payload, 8, 0);
            let pieces = fragment(&packet, mtu);
            let mut at = 0;
            for (index, piece) in pieces.iter().enumerate() {
                let header = parse_ip(piece).expect("a fragment is a packet");
                assert!(piece.len() <= mtu);
                assert_eq!(usize::from(header.fragment & 0x1FFF) * 8, at);
                assert_eq!(header.fragment & 0x2000 != 0, index + 1 < pieces.len());
                at += piece.len() - header.header_bytes;
            }
            assert_eq!(at, payload, "payload {payload}, MTU {mtu}");
        }
    }
    assert!(fragment(&ipv4(100, 0, 0x4000), 68).is_empty(), "DF");
    assert!(fragment(&ipv4(100, 0, 0), 27).is_empty(), "no room for 8 bytes");
    assert!(fragment(&ipv4(100, 0, 0x1FFF), 68).is_empty(), "past 65535 bytes");
    assert!(fragment(&[], 68).is_empty());
}

#[test]
fn a_header_cut_off_anywhere_is_refused() {
    let whole = [&encode(7, 4, 3, 16, 20, 99, 200)[..], &ipv4(8, 0, 0)].concat();
    let found = decode(&whole, 7).expect("it is well-formed");
    assert_eq!(
        (found.header_bytes, found.flags, found.csum_offset, found.csum_start, found.frame_id, found.epoch),
        (20, 3, 16, 20, 99, Some(200))
    );
    for size in 0..geneve::HEADER_BYTES {
        assert_eq!(decode(&whole[..size], 7), Err(DropReason::BadEncapsulation), "{size} bytes");
    }
    assert_eq!(decode(&whole, 8), Err(DropReason::WrongNetwork));
}

#[test]
fn half_of_all_epochs_are_older() {
    for epoch in 0..=255u8 {
        for ahead in 0..=255u8 {
            let encap = Encapsulation { epoch: Some(epoch.wrapping_add(ahead)), ..Default::default() };
            assert_eq!(encap.is_older(epoch), ahead >= 128, "{epoch} and {ahead} ahead");
        }
        assert!(!Encapsulation::default().is_older(epoch), "plain Geneve tells none");
    }
}

// Probes

fn request(size: usize) -> Vec<u8> {
    let mut made = vec![0; size.max(28)];
    made[..16].copy_from_slice(&[5, 0xC0, 0, 0, 0, 0, 7, 0, 0xFF, 0xFF, 0x82, 4, 1, 0, 0, 0]);
    put16(&mut made, 14, size as u16);
    made
}

#[test]
fn a_probe_is_as_long_as_it_says() {
    for size in [28, 29, 1472, 65_507] {
        let whole = request(size);
        let header = probe::decode(&whole).expect("it is well-formed");
        assert!(probe::is_request(&header));
        let answer = probe::answer_to(header);
        assert_eq!((&answer[..12], answer[12], &answer[13..]), (&whole[..12], 2, &whole[13..28]));
        assert_eq!(probe::decode(&answer), Some(answer));
        assert!(!probe::is_request(&answer));
        assert_eq!(probe::decode(&[&answer[..], &[0]].concat()), None, "an answer is the header alone");
        for cut in (0..whole.len().min(200)).chain([whole.len() - 1]) {
            assert_eq!(probe::decode(&whole[..cut]), None, "{cut} of {size} bytes");
        }
        assert_eq!(probe::decode(&[&whole[..], &[0]].concat()), None);
        assert_eq!(decode(&whole, 7), Err(DropReason::BadEncapsulation), "it holds no packet");
        assert_eq!(decode(&whole, 8), Err(DropReason::WrongNetwork));
    }
    assert_eq!(probe::decode(&request(27)), None, "shorter than its header");
}

#[test]
fn every_bit_of_a_probe_is_reserved_or_means_something() {
    let whole = request(28);
    let reserved = [(1, 0x7F), (4, 0xFF), (5, 0xFF), (6, 0xFF), (7, 0xFF), (11, 0xE0), (13, 0xFF)];
    for at in 0..16 {
        for bit in 0..8 {
            let mut changed = whole.clone();
            changed[at] ^= 1 << bit;
            let ignored = reserved.iter().any(|&(where_, bits)| where_ == at && bits >> bit & 1 == 1);
            assert_eq!(probe::decode(&changed).is_some(), ignored, "bit {bit} of byte {at}");
        }
    }
}

// What is known of peers

#[test]
fn a_peer_stays_the_same_whatever_is_known_of_it() {
    let endpoint = "127.0.0.1:6081".parse().expect("an endpoint");
    let known = Known { offload: true, epoch: None, up: true, mtu_bytes: 0 };
    let first = Peer::new(9, endpoint, known, 1452);
    assert_eq!(first.mtu_bytes(), 1452);
    first.lower_mtu(1300, 0);
    first.path.segmenting.store(false, Relaxed);
    let ten_minutes_ns = 600_000_000_000;
    for (mtu_bytes, limit) in [(1400, 1300), (1200, 1200), (10, 68), (9000, 1300), (0, 1300)] {
        let later = first.knowing(Known { mtu_bytes, ..known }, 1452);
        assert_eq!((later.serial, later.endpoint, later.mtu_bytes()), (9, endpoint, limit), "{mtu_bytes}");
        assert!(!later.path.segmenting.load(Relaxed));
        later.forget_mtu(ten_minutes_ns - 1);
        assert_eq!(later.mtu_bytes(), limit);
    }
    let last = first.knowing(Known { mtu_bytes: 1400, ..known }, 1452);
    last.lower_mtu(1, 0);
    assert_eq!((last.mtu_bytes(), first.mtu_bytes()), (68, 68), "both speak of one path");
    last.forget_mtu(ten_minutes_ns);
    assert_eq!((last.mtu_bytes(), first.mtu_bytes()), (1400, 1452));
}

#[test]
fn answers_leave_room_for_what_matters_more() {
    let slow_path = SlowPath::default();
    let peer = Party { slot: 0, serial: 1 };
    let answer = || Exception::ProbeAnswered { peer, answer: [0; 28], received_ns: 0 };
    let kept = (0..5000).filter(|_| slow_path.push(answer())).count();
    assert_eq!(kept, 1024);
    assert!(slow_path.push(Exception::AttachmentLost { port: peer, errno: 77 }));
    assert_eq!(slow_path.take(Duration::ZERO).len(), 1025);
    assert!(slow_path.push(answer()), "there is room again");
}

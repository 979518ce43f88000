//! Frames and trains: made well-formed, of every shape, then damaged. What is made is kept in a pool and drawn from it.

use podwire_engine::wire::geneve;
use podwire_engine::wire::packet::*;
use podwire_engine::wire::shape::{Shape, set_lengths};

use crate::random::Random;

pub const VNI: u32 = 7;
/// How many of each kind the pool holds; one is made anew now and then.
const POOL: usize = 256;
/// Attachments are .1 to .6, peers the nodes 2 to 4.
const MOST_HOST: u8 = 6;
const MOST_NODE: u8 = 4;
const MOST_FRAME_BYTES: usize = VNET_BYTES + MAX_PACKET_BYTES;
const MOST_TRAIN_BYTES: usize = 65_000;
const INTERESTING: [u8; 28] = [
    0, 1, 2, 4, 5, 6, 7, 8, 15, 16, 17, 20, 39, 40, 41, 44, 58, 60, 63, 64, 0x45, 0x4F, 0x60, 127, 128, 0x81, 254, 255,
];
const GSO_SIZES: [u16; 17] = [1, 7, 8, 100, 255, 256, 257, 536, 1000, 1300, 1392, 1400, 1412, 1432, 2000, 8900, 65000];
/// What senders say: of the moment, ahead of it or behind, as site.rs knows it.
const EPOCHS: [u8; 7] = [255, 0, 1, 1, 2, 3, 130];
const PROBE_BYTES: usize = 28;
const SIZES: [usize; 13] = [0, 1, 18, 18, 64, 300, 552, 1000, 1400, 1413, 3000, 8900, 9000];
/// Fourth and third byte of destinations in 10.42/16; 255 for one outside of it.
#[rustfmt::skip]
const PLACES: [(u8, u8); 20] = [
    (1, 2), (1, 3), (1, 4), (1, 5), (1, 6), (1, 1), (1, 99), (2, 3), (2, 3), (2, 3), (3, 3), (3, 3), (4, 3), (4, 3), (4, 3),
    (4, 3), (4, 3), (200, 1), (255, 9), (255, 1),
]; // fmt: skip

/// A train as a socket hands it over: rows of `step` bytes, the last perhaps shorter.
pub struct Rows {
    pub bytes: Vec<u8>,
    pub step: usize,
}

/// What each attachment and each peer sends, by last byte of its address.
pub struct Traffic {
    frames: Vec<Vec<Vec<u8>>>,
    trains: Vec<Vec<Rows>>,
    /// Small packets to every node there is.
    small: Vec<Vec<Vec<u8>>>,
    /// The same frame comes so many times more: streams of packets of one size are what runs are made of.
    again: usize,
    last: usize,
    /// Or small ones to all nodes come so many times.
    spread: bool,
}

impl Traffic {
    pub fn new(random: &mut Random) -> Self {
        let frames = (0..=MOST_HOST).map(|host| (0..POOL).map(|_| frame(random, host)).collect()).collect();
        let trains = (0..=MOST_NODE).map(|node| (0..POOL).map(|_| train(random, node)).collect()).collect();
        let small = (0..=MOST_HOST).map(|host| (0..POOL).map(|_| small_frame(random, host)).collect()).collect();
        Traffic { frames, trains, small, again: 0, last: 0, spread: false }
    }

    /// Write a frame of a Pod into the buffer; return its length.
    pub fn frame(&mut self, random: &mut Random, host: u8, into: &mut [u8]) -> usize {
        if self.again > 0 {
            self.again -= 1;
        } else {
            self.last = random.below(POOL);
            self.again = if random.once_in(10) { random.below(60) } else { 0 };
            self.spread = random.once_in(3);
        }
        let at = self.last;
        if self.again == 0 && random.once_in(256) {
            self.frames[usize::from(host)][at] = frame(random, host);
        }
        let made = if self.again > 0 && self.spread {
            &self.small[usize::from(host)][random.below(POOL)]
        } else {
            &self.frames[usize::from(host)][at]
        };
        into[..made.len()].copy_from_slice(made);
        let mut size = made.len();
        if random.once_in(if self.again > 0 { 30 } else { 3 }) {
            size = damage(random, &mut into[..MOST_FRAME_BYTES], size);
            if random.once_in(2) {
                mend(&mut into[..size], VNET_BYTES);
            }
        }
        size
    }

    /// Write a train of a node into the buffer; return its length and that of its rows.
    pub fn train(&mut self, random: &mut Random, node: u8, into: &mut [u8]) -> (usize, usize) {
        let at = random.below(POOL);
        if random.once_in(256) {
            self.trains[usize::from(node)][at] = train(random, node);
        }
        let made = &self.trains[usize::from(node)][at];
        let (mut size, step) = (made.bytes.len(), made.step);
        into[..size].copy_from_slice(&made.bytes);
        if random.once_in(2) {
            let rows = size.div_ceil(step);
            let (row, start) = (random.below(rows), random.below(rows) * step);
            let end = size.min(start + step);
            match random.below(8) {
                0 => into.copy_within(row * step..size.min(row * step + end - start), start),
                1 => into[start + random.below(90.min(end - start))] ^= 1 << random.below(8),
                2 if start + 20 < end => into[start + 8 + random.below(12)] = random.pick(&INTERESTING),
                3 => size -= random.below(step.min(size)),
                4 => into[start + random.below(end - start)] = random.next() as u8,
                5 => into.copy_within(start..size, start.saturating_sub(random.below(4))),
                _ if rows == 1 => size = damage(random, &mut into[..MOST_TRAIN_BYTES], size),
                _ => {}
            }
            if random.once_in(2) {
                let encap_bytes = geneve::BASE_BYTES + (usize::from(into[start] & 63) << 2);
                mend(&mut into[start..size.min(start + step).max(start)], encap_bytes);
            }
        }
        let size = size.max(1);
        (size, if step < size { step } else { size })
    }
}

/// Flip, overwrite, cut off, add, take out: at the front more often, where the headers are. Return the length after.
fn damage(random: &mut Random, bytes: &mut [u8], mut size: usize) -> usize {
    for _ in 0..random.pick(&[1, 1, 1, 2, 3, 8]) {
        if size == 0 {
            break;
        }
        let reach = random.pick(&[12, 24, 48, 96, size]).min(size);
        let at = random.below(reach);
        let by = 1 + random.below(8);
        match random.below(8) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 | 2 => bytes[at] = random.pick(&INTERESTING),
            3 => bytes[at] = random.next() as u8,
            4 => size = random.below(size),
            5 if size + 60 < bytes.len() => {
                let more = 1 + random.below(60);
                random.fill(&mut bytes[size..size + more]);
                size += more;
            }
            6 if at + by < size => {
                bytes.copy_within(at + by..size, at);
                size -= by;
            }
            7 if size + by < bytes.len() => {
                bytes.copy_within(at..size, at + by);
                size += by;
            }
            _ => {}
        }
    }
    size
}

/// Make the IP header's length and checksum right again.
fn mend(bytes: &mut [u8], at: usize) {
    let Some(packet) = bytes.get_mut(at..).filter(|packet| packet.len() >= IPV6_BYTES) else { return };
    let size = packet.len();
    match packet[0] >> 4 {
        4 => {
            let header_bytes = (usize::from(packet[0] & 15) << 2).min(size);
            put16(packet, 2, size as u16);
            put16(packet, 10, 0);
            let sum = checksum(&packet[..header_bytes]);
            put16(packet, 10, sum);
        }
        6 => put16(packet, 4, (size - IPV6_BYTES).min(0xFFFF) as u16),
        _ => {}
    }
}

// What is well-formed

struct Ends {
    src: Vec<u8>,
    dst: Vec<u8>,
}

fn ends(random: &mut Random, source: (u8, u8)) -> Ends {
    let (mut subnet, mut host) = random.pick(&PLACES);
    if subnet == 4 {
        subnet += random.below(21) as u8;
    }
    if source.0 != 1 && !random.once_in(4) {
        (subnet, host) = (1, 2 + random.below(5) as u8);
    }
    let source = if random.once_in(30) { random.pick(&PLACES) } else { source };
    let v4 = |(subnet, host): (u8, u8)| if subnet == 255 { vec![9, 9, 9, host] } else { vec![10, 42, subnet, host] };
    let v6 = |(subnet, host): (u8, u8)| {
        let mut address = vec![0; 16];
        address[..4].copy_from_slice(&if subnet == 255 { [0x20, 1, 0x0d, 0xb8] } else { [0xfd, 0x42, 0, subnet] });
        address[15] = host;
        address
    };
    let mut dst = if random.once_in(2) { v4((subnet, host)) } else { v6((subnet, host)) };
    if random.once_in(40) {
        let never: [&[u8]; 4] = [&[224, 0, 0, 1], &[127, 0, 0, 1], &[255; 4], &[169, 254, 1, 1]];
        match dst.len() {
            4 => dst = random.pick(&never).to_vec(),
            _ => dst[..2].copy_from_slice(&random.pick(&[[0xff, 2], [0xfe, 0x80]])),
        }
    }
    Ends { src: if dst.len() == 4 { v4(source) } else { v6(source) }, dst }
}

/// A TCP or UDP packet, its checksum the pseudo-header's sum; and where its L4 header and payload begin.
fn packet(random: &mut Random, ends: &Ends, protocol: u8, payload_bytes: usize) -> (Vec<u8>, usize, usize) {
    let four = ends.dst.len() == 4;
    let mut extension = vec![0; if random.once_in(8) { 8 * (1 + random.below(4)) } else { 0 }];
    random.fill(&mut extension);
    let options = if protocol == TCP { 4 * random.pick(&[0, 0, 3, 5, 10]) } else { 0 };
    let l4_bytes = if protocol == TCP { 20 + options } else { 8 };
    let ip_bytes = if four { IPV4_BYTES } else { IPV6_BYTES } + extension.len();
    let payload_bytes = payload_bytes.min(MAX_PACKET_BYTES - ip_bytes - l4_bytes);
    let size = ip_bytes + l4_bytes + payload_bytes;
    let mut made = vec![0xA5; size];
    made[..ip_bytes + l4_bytes].fill(0);
    let hop_limit = random.pick(&[0, 1, 2, 2, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 255]);
    if four {
        made[0] = 0x40 | (ip_bytes >> 2) as u8;
        put16(&mut made, 2, size as u16);
        put16(&mut made, 4, random.pick(&[0, 1, 0xFFF0]));
        put16(&mut made, 6, random.pick(&[0x4000, 0x4000, 0x4000, 0, 0, 0]));
        if random.once_in(40) {
            put16(&mut made, 6, random.pick(&[0x2000, 0x2005, 0x1FFF]));
        }
        made[8] = hop_limit;
        made[9] = protocol;
        made[12..16].copy_from_slice(&ends.src);
        made[16..20].copy_from_slice(&ends.dst);
        made[20..ip_bytes].copy_from_slice(&extension);
        let sum = checksum(&made[..ip_bytes]);
        put16(&mut made, 10, sum);
    } else {
        made[0] = 0x60;
        put16(&mut made, 4, (size - IPV6_BYTES) as u16);
        made[6] = if extension.is_empty() { protocol } else { random.pick(&[0, 43, 60]) };
        made[7] = hop_limit;
        made[8..24].copy_from_slice(&ends.src);
        made[24..40].copy_from_slice(&ends.dst);
        if let Some(units) = (extension.len() / 8).checked_sub(1) {
            (extension[0], extension[1]) = (protocol, units as u8);
        }
        made[40..ip_bytes].copy_from_slice(&extension);
    }
    let l4 = ip_bytes;
    made[l4..l4 + 4].copy_from_slice(&[0x9C, 0x40, 0xC3, 0x51]);
    let pseudo = u32::from(ones_sum(&ends.src, 0)) + u32::from(ones_sum(&ends.dst, 0)) + u32::from(protocol);
    let sum = ones_sum(&[], pseudo + (size - l4) as u32);
    if protocol == TCP {
        let sequence = random.pick(&[1, 0xFFFF_FF00, 77_777_777u32]);
        made[l4 + 4..l4 + 8].copy_from_slice(&sequence.to_be_bytes());
        made[l4 + 12] = ((20 + options) << 2) as u8;
        made[l4 + 13] = random.pick(&[0x10, 0x10, 0x10, 0x18, 0x11, 0x90, 0xFF, 2]);
        put16(&mut made, l4 + 16, sum);
    } else {
        put16(&mut made, l4 + 4, (size - l4) as u16);
        put16(&mut made, l4 + 6, sum);
    }
    (made, l4, l4 + l4_bytes)
}

fn frame(random: &mut Random, host: u8) -> Vec<u8> {
    let ends = ends(random, (1, host));
    let protocol = random.pick(&[TCP, UDP]);
    let gso_size = random.pick(&GSO_SIZES);
    let whole = random.once_in(2);
    let most = (60_000 / usize::from(gso_size)).clamp(1, 80);
    let count = 1 + random.below(most);
    let near = (count * usize::from(gso_size) + random.below(3)).saturating_sub(1);
    let payload_bytes = if whole { near } else { random.pick(&SIZES) };
    let (packet, l4, header_bytes) = packet(random, &ends, protocol, payload_bytes);
    let csum_offset = if protocol == TCP { TCP_CSUM_OFFSET } else { UDP_CSUM_OFFSET };
    let mut vnet = VnetHeader::default();
    if whole || random.once_in(2) {
        vnet = VnetHeader { flags: NEEDS_CSUM, csum_start: l4 as u16, csum_offset, ..vnet };
    }
    if whole {
        let four = packet[0] >> 4 == 4;
        vnet.gso_type = if protocol == UDP {
            GSO_UDP_L4
        } else if four {
            GSO_TCPV4
        } else {
            GSO_TCPV6
        };
        (vnet.gso_size, vnet.hdr_len) = (gso_size, header_bytes as u16);
    }
    [&vnet.to_bytes()[..], &packet].concat()
}

fn small_frame(random: &mut Random, host: u8) -> Vec<u8> {
    let subnet = 2 + random.below(23) as u8;
    let ends = Ends { src: vec![10, 42, 1, host], dst: vec![10, 42, subnet, 3] };
    let payload_bytes = random.pick(&[18, 18, 18, 19, 64]);
    let (packet, l4, _) = packet(random, &ends, UDP, payload_bytes);
    let (flags, csum_start, csum_offset) = (NEEDS_CSUM, l4 as u16, UDP_CSUM_OFFSET);
    let vnet = VnetHeader { flags, csum_start, csum_offset, ..Default::default() };
    [&vnet.to_bytes()[..], &packet].concat()
}

/// The rows that a peer would make of a super-packet: numbered segments, or packets that only follow each other.
fn train(random: &mut Random, node: u8) -> Rows {
    if random.once_in(16) {
        return probes(random);
    }
    let payload_bytes = random.pick(&[1, 20, 100, 200, 255, 256, 257, 536, 1000, 1300, 1380]);
    let ends = ends(random, (node, 3));
    let protocol = random.pick(&[TCP, UDP]);
    let (mut first, l4, header_bytes) = packet(random, &ends, protocol, payload_bytes);
    let (plain, segments) = (random.once_in(6), random.once_in(2));
    let csum_offset = if protocol == TCP { TCP_CSUM_OFFSET } else { UDP_CSUM_OFFSET } as u8;
    let version = first[0] >> 4;
    let payload_bytes = first.len() - header_bytes;
    let encap_bytes = if plain { geneve::BASE_BYTES } else { geneve::HEADER_BYTES };
    let step = encap_bytes + first.len();
    let count = 1 + random.below((MOST_TRAIN_BYTES / step).clamp(1, 80));
    let (base, frame_id) = (random.pick(&[0, 0, 0, 5, 250u8]), random.next() as u16);
    let mut epoch = random.pick(&EPOCHS);
    let mut bytes = Vec::new();
    for row in 0..count {
        if step >= PROBE_BYTES && random.once_in(60) {
            bytes.extend_from_slice(&probe(random, step));
        }
        if random.once_in(60) {
            epoch = random.pick(&EPOCHS);
        }
        if plain {
            bytes.extend_from_slice(&geneve::encode_plain(VNI, version));
        } else {
            let mut flags = geneve::PARTIAL_CHECKSUM;
            if segments {
                flags |= geneve::SEGMENT | if row + 1 == count { geneve::LAST_SEGMENT } else { 0 };
            }
            let mut encap = geneve::encode(VNI, version, flags, csum_offset, l4 as u16, frame_id, epoch);
            encap[geneve::INDEX_AT] = base.wrapping_add(row as u8);
            bytes.extend_from_slice(&encap);
        }
        if row + 1 == count && count > 1 && random.once_in(2) {
            shorten(&mut first, random, protocol, l4, header_bytes);
        }
        bytes.extend_from_slice(&first);
        if protocol == TCP {
            let sequence = be32(&first, l4 + 4).wrapping_add(payload_bytes as u32);
            first[l4 + 4..l4 + 8].copy_from_slice(&sequence.to_be_bytes());
        }
        if version == 4 && be16(&first, 6) & 0x4000 == 0 {
            let next = be16(&first, 4).wrapping_add(1);
            put16(&mut first, 4, next);
            mend(&mut first, 0);
        }
    }
    Rows { bytes, step }
}

/// Nothing but probes, of one size.
fn probes(random: &mut Random) -> Rows {
    let step = random.pick(&[PROBE_BYTES, PROBE_BYTES, 29, 500, 512, 1472]);
    let bytes = (0..1 + random.below(8)).flat_map(|_| probe(random, step)).collect();
    Rows { bytes, step }
}

/// A row of `size` bytes: a probe that asks or answers, the latter right in the smallest row alone; or a question or reply.
fn probe(random: &mut Random, size: usize) -> Vec<u8> {
    let mut made = vec![0; size];
    (made[0], made[1]) = (5, 0xC0);
    made[4..8].copy_from_slice(&(VNI << 8).to_be_bytes());
    made[8..12].copy_from_slice(&[0xFF, 0xFF, random.pick(&[0x82, 0x82, 0x83]), 4]);
    made[12] = random.pick(&[1, 1, 1, 2, 0]);
    put16(&mut made, 14, size as u16);
    random.fill(&mut made[16..PROBE_BYTES]);
    made
}

/// Make it the last of a super-packet: less payload, and closing flags.
fn shorten(packet: &mut Vec<u8>, random: &mut Random, protocol: u8, l4: usize, header_bytes: usize) {
    let csum_offset = if protocol == TCP { TCP_CSUM_OFFSET } else { UDP_CSUM_OFFSET };
    let (was_bytes, version) = (packet.len(), packet[0] >> 4);
    let payload_bytes = 1 + random.below(was_bytes - header_bytes);
    if protocol == TCP {
        packet[l4 + 13] |= random.pick(&[0, 1, 8, 9]);
    }
    packet.truncate(header_bytes + payload_bytes);
    set_lengths(packet, version, &Shape { l4, header_bytes, csum_offset }, was_bytes, payload_bytes);
}

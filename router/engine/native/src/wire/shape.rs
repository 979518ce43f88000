//! What super-packets and trains are made of, and the headers that change when one becomes the other
//! (router/wire/segment.py).

use super::geneve;
use super::packet::*;

/// Most bytes of one UDP send over IPv4 (65535 − 20 − 8); one bound for both families.
pub const MAX_TRAIN_BYTES: usize = 65507;
pub const UDP_BYTES: usize = 8;

/// TCP flags (RFC 9293 section 3.1, RFC 3168 section 6.1).
pub const FIN: u8 = 0x01;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;
pub const ECE: u8 = 0x40;
pub const CWR: u8 = 0x80;

/// Where the headers of a TCP or UDP packet end. Offsets count from the IP header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    pub l4: usize,
    pub header_bytes: usize,
    pub csum_offset: u16,
}

impl Shape {
    pub fn is_tcp(&self) -> bool {
        self.csum_offset == TCP_CSUM_OFFSET
    }

    /// Find the end of the L4 header; None unless this is a whole TCP or UDP header where the checksum offsets say so.
    pub fn of(packet: &[u8], header: &IpHeader, csum_start: u16, csum_offset: u16) -> Option<Shape> {
        let l4 = usize::from(csum_start);
        if header.fragment != 0 || l4 < header.header_bytes {
            return None;
        }
        let (protocol, minimum) = match csum_offset {
            TCP_CSUM_OFFSET => (TCP, 20),
            UDP_CSUM_OFFSET => (UDP, UDP_BYTES),
            _ => return None,
        };
        // An IPv6 packet may have extension headers before csum_start; they are copied to every segment as they are.
        let follows = l4 == header.header_bytes;
        if (follows && header.protocol != protocol) || (!follows && header.version == 4) || l4 + minimum > packet.len()
        {
            return None;
        }
        let size = if protocol == TCP { usize::from(packet[l4 + 12] >> 4) << 2 } else { UDP_BYTES };
        if size < minimum || l4 + size > packet.len() {
            return None;
        }
        Some(Shape { l4, header_bytes: l4 + size, csum_offset })
    }

    /// Check a super-packet's virtio header against its bytes; None when they do not belong together.
    pub fn of_super_packet(packet: &[u8], header: &IpHeader, vnet: &VnetHeader) -> Option<Shape> {
        let shape = Shape::of(packet, header, vnet.csum_start, vnet.csum_offset)?;
        if vnet.gso_size == 0 || vnet.flags & NEEDS_CSUM == 0 {
            return None;
        }
        if geneve::HEADER_BYTES + shape.header_bytes + usize::from(vnet.gso_size) > MAX_TRAIN_BYTES {
            return None; // no segment so long can be sent
        }
        let expected = match (shape.is_tcp(), header.version) {
            (true, 4) => GSO_TCPV4,
            (true, _) => GSO_TCPV6,
            (false, _) => GSO_UDP_L4,
        };
        (vnet.gso_type & !GSO_ECN == expected).then_some(shape)
    }

    /// Return how many packets a super-packet stands for; one without payload is one.
    pub fn packets_in(&self, packet_bytes: usize, gso_size: u16) -> u64 {
        (packet_bytes - self.header_bytes).div_ceil(usize::from(gso_size)).max(1) as u64
    }
}

/// Add a signed number to a partial checksum, staying in 1..=0xFFFF.
pub fn shift_sum(value: u16, by: i64) -> u16 {
    match (i64::from(value) + by).rem_euclid(0xFFFF) as u16 {
        0 => 0xFFFF,
        sum => sum,
    }
}

/// Make the headers in `header` (IP to L4) those of a packet of that payload, their lengths and sums changed to fit.
/// `was_bytes` is how long the packet was for which the partial checksum stands.
pub fn set_lengths(header: &mut [u8], version: u8, shape: &Shape, was_bytes: usize, payload_bytes: usize) {
    let size = shape.header_bytes + payload_bytes;
    if version == 4 {
        put16(header, 2, size as u16);
        renew_ipv4_checksum(header);
    } else {
        put16(header, 4, (size - IPV6_BYTES) as u16);
    }
    if !shape.is_tcp() {
        put16(header, shape.l4 + 4, (UDP_BYTES + payload_bytes) as u16);
    }
    let field = shape.l4 + usize::from(shape.csum_offset);
    let sum = shift_sum(be16(header, field), size as i64 - was_bytes as i64);
    put16(header, field, sum);
}

/// Sum an IPv4 header anew.
pub fn renew_ipv4_checksum(header: &mut [u8]) {
    let header_bytes = usize::from(header[0] & 15) << 2;
    put16(header, 10, 0);
    let sum = checksum(&header[..header_bytes]);
    put16(header, 10, sum);
}

//! Checked views of IPv4, IPv6 and virtio-net headers, and Internet checksums (router/wire/packet.py).
//!
//! Whatever is not a packet comes back as None: the bytes are a stranger's.

pub const VNET_BYTES: usize = 10;
pub const NEEDS_CSUM: u8 = 1;
pub const GSO_NONE: u8 = 0;
pub const GSO_TCPV4: u8 = 1;
pub const GSO_TCPV6: u8 = 4;
pub const GSO_UDP_L4: u8 = 5;
pub const GSO_ECN: u8 = 0x80;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const TCP_CSUM_OFFSET: u16 = 16;
pub const UDP_CSUM_OFFSET: u16 = 6;
pub const IPV4_BYTES: usize = 20;
pub const IPV6_BYTES: usize = 40;
pub const MAX_PACKET_BYTES: usize = 65535;

/// Source and destination of a packet, as numbers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Addresses {
    V4 { src: u32, dst: u32 },
    V6 { src: u128, dst: u128 },
}

/// What routing needs of an IP header. Offsets count from the packet's first byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IpHeader {
    pub version: u8,
    /// IPv4 with options; IPv6 without extension headers.
    pub header_bytes: usize,
    pub hop_limit: u8,
    /// IPv6: the first next header, which may be an extension.
    pub protocol: u8,
    /// IPv4 without the DF bit.
    pub may_fragment: bool,
    /// IPv4 flag MF and fragment offset; non-zero in any fragment.
    pub fragment: u16,
    pub addresses: Addresses,
}

/// struct virtio_net_hdr (linux/virtio_net.h), host order.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VnetHeader {
    pub flags: u8,
    pub gso_type: u8,
    pub hdr_len: u16,
    pub gso_size: u16,
    pub csum_start: u16,
    pub csum_offset: u16,
}

impl VnetHeader {
    pub fn read(bytes: &[u8; VNET_BYTES]) -> Self {
        let half = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        VnetHeader {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: half(2),
            gso_size: half(4),
            csum_start: half(6),
            csum_offset: half(8),
        }
    }

    pub fn to_bytes(self) -> [u8; VNET_BYTES] {
        let mut bytes = [0; VNET_BYTES];
        bytes[0] = self.flags;
        bytes[1] = self.gso_type;
        for (at, half) in [(2, self.hdr_len), (4, self.gso_size), (6, self.csum_start), (8, self.csum_offset)] {
            bytes[at..at + 2].copy_from_slice(&half.to_ne_bytes());
        }
        bytes
    }
}

pub fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

pub fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub fn be128(bytes: &[u8], at: usize) -> u128 {
    let mut value = [0; 16];
    value.copy_from_slice(&bytes[at..at + 16]);
    u128::from_be_bytes(value)
}

/// Check the IP header of a packet that fills the slice; None when it is no IP packet of exactly that length.
///
/// Checks version, lengths and the IPv4 header checksum (RFC 1812 section 5.2.2, RFC 8200 section 3).
pub fn parse_ip(packet: &[u8]) -> Option<IpHeader> {
    let size = packet.len();
    if size < IPV4_BYTES {
        return None;
    }
    match packet[0] >> 4 {
        4 => {
            let header_bytes = usize::from(packet[0] & 15) << 2;
            if usize::from(be16(packet, 2)) != size || header_bytes < IPV4_BYTES || header_bytes > size {
                return None;
            }
            if ones_sum(&packet[..header_bytes], 0) != 0xFFFF {
                return None;
            }
            let fragment = be16(packet, 6);
            Some(IpHeader {
                version: 4,
                header_bytes,
                hop_limit: packet[8],
                protocol: packet[9],
                may_fragment: fragment & 0x4000 == 0,
                fragment: fragment & 0x3FFF,
                addresses: Addresses::V4 { src: be32(packet, 12), dst: be32(packet, 16) },
            })
        }
        6 if size >= IPV6_BYTES && usize::from(be16(packet, 4)) + IPV6_BYTES == size => Some(IpHeader {
            version: 6,
            header_bytes: IPV6_BYTES,
            hop_limit: packet[7],
            protocol: packet[6],
            may_fragment: false,
            fragment: 0,
            addresses: Addresses::V6 { src: be128(packet, 8), dst: be128(packet, 24) },
        }),
        _ => None,
    }
}

/// Take one from the TTL or hop limit in place, and mend the IPv4 header checksum (RFC 1624, equation 3).
pub fn decrement_hop_limit(packet: &mut [u8]) {
    if packet[0] >> 4 == 6 {
        packet[7] -= 1;
        return;
    }
    packet[8] -= 1;
    // One less in the high byte of a word that is summed: 0x0100 more in the complement, the carry going round; 0xFFFF
    // goes round too: it would be the zero that no header sums to (ip_decrease_ttl, include/net/ip.h).
    let sum = u32::from(be16(packet, 10)) + 0x0100;
    put16(packet, 10, (sum + u32::from(sum >= 0xFFFF)) as u16);
}

/// Undo `decrement_hop_limit` on a header's first bytes.
pub fn return_hop(head: &mut [u8; 12]) {
    if head[0] >> 4 == 6 {
        head[7] = head[7].wrapping_add(1);
        return;
    }
    head[8] = head[8].wrapping_add(1);
    let sum = i32::from(be16(head, 10)) - 0x0100;
    put16(head, 10, (if sum < 0 { sum + 0xFFFF } else { sum }) as u16);
}

/// Return the 16-bit ones' complement sum of the data (RFC 1071), odd lengths padded with a zero byte.
///
/// A sum that is zero modulo 0xFFFF reads 0xFFFF unless everything summed was zero, as the end-around carry gives it.
pub fn ones_sum(data: &[u8], initial: u32) -> u16 {
    let mut sum = u64::from(initial);
    let mut words = data.chunks_exact(4);
    for word in &mut words {
        sum += u64::from(u32::from_be_bytes([word[0], word[1], word[2], word[3]]));
    }
    let rest = words.remainder();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    sum += u64::from(u32::from_be_bytes(last));
    while sum >> 16 != 0 {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    sum as u16
}

/// Return the Internet checksum of the data (RFC 1071): the complement of its ones' complement sum.
pub fn checksum(data: &[u8]) -> u16 {
    !ones_sum(data, 0)
}

/// Return where a partial L4 checksum stands; None when that lies outside the packet, or in its IP header.
pub fn checksum_field(packet: &[u8], csum_start: u16, csum_offset: u16) -> Option<usize> {
    let start = usize::from(csum_start);
    let field = start + usize::from(csum_offset);
    // In the IP header it would change addresses that were checked.
    let header_bytes = if packet.first()? >> 4 == 4 { usize::from(packet[0] & 15) << 2 } else { IPV6_BYTES };
    (field + 2 <= packet.len() && start >= header_bytes).then_some(field)
}

/// Complete a partial L4 checksum in place, as a NIC would; false when the offsets lie outside the packet, or in its IP header.
///
/// The field holds the pseudo-header's sum (linux/skbuff.h, CHECKSUM_PARTIAL). A UDP sum of zero is sent as 0xFFFF
/// (RFC 768).
pub fn finish_checksum(packet: &mut [u8], csum_start: u16, csum_offset: u16) -> bool {
    let Some(field) = checksum_field(packet, csum_start, csum_offset) else { return false };
    let mut value = checksum(&packet[usize::from(csum_start)..]);
    if value == 0 && csum_offset == UDP_CSUM_OFFSET {
        value = 0xFFFF;
    }
    put16(packet, field, value);
    true
}

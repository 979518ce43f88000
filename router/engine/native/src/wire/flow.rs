//! Which flow a packet belongs to (router/wire/flow.py).

use super::packet::*;

const SCTP: u8 = 132;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const FRAGMENT_OFFSET: u16 = 0x1FFF;

/// Which packets belong together: the five-tuple of RFC 6146 section 2. Of ICMP, type and code stand for the ports.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Flow {
    pub addresses: Addresses,
    pub protocol: u8,
    pub src_port: u16,
    pub dst_port: u16,
}

/// Return the flow of a packet given from its IP header on, which may be cut short; None when it is no IP packet.
///
/// Ports are read where they are there: not in fragments but the first, and not behind IPv6 extension headers.
pub fn flow_of(packet: &[u8]) -> Option<Flow> {
    let (addresses, protocol, l4) = match packet.first()? >> 4 {
        4 if packet.len() >= IPV4_BYTES => {
            let header_bytes = usize::from(packet[0] & 15) << 2;
            if header_bytes < IPV4_BYTES {
                return None;
            }
            let first = be16(packet, 6) & FRAGMENT_OFFSET == 0;
            (Addresses::V4 { src: be32(packet, 12), dst: be32(packet, 16) }, packet[9], first.then_some(header_bytes))
        }
        6 if packet.len() >= IPV6_BYTES => {
            (Addresses::V6 { src: be128(packet, 8), dst: be128(packet, 24) }, packet[6], Some(IPV6_BYTES))
        }
        _ => return None,
    };
    let (src_port, dst_port) = l4.and_then(|at| ports(packet.get(at..)?, protocol)).unwrap_or((0, 0));
    Some(Flow { addresses, protocol, src_port, dst_port })
}

fn ports(l4: &[u8], protocol: u8) -> Option<(u16, u16)> {
    match protocol {
        TCP | UDP | SCTP if l4.len() >= 4 => Some((be16(l4, 0), be16(l4, 2))),
        ICMP | ICMPV6 if l4.len() >= 2 => Some((l4[0].into(), l4[1].into())),
        _ => None,
    }
}

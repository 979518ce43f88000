//! IPv4 fragmentation by a router: one packet in, packets that fit the next link out (RFC 791 section 3.2;
//! router/wire/fragment.py).

use super::packet::{IPV4_BYTES, be16, parse_ip, put16};
use super::shape::renew_ipv4_checksum;

const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET: u16 = 0x1FFF;
const END_OF_OPTIONS: u8 = 0;
const NO_OPERATION: u8 = 1;
const COPIED: u8 = 0x80;

/// Return the packet cut into fragments of at most `mtu_bytes`, or the packet alone where it fits.
///
/// Empty where that cannot be done: not IPv4, DF set, no room for 8 bytes of payload, or an offset past 65535 bytes.
pub fn fragment(packet: &[u8], mtu_bytes: usize) -> Vec<Vec<u8>> {
    let Some(header) = parse_ip(packet).filter(|header| header.version == 4) else {
        return Vec::new();
    };
    if packet.len() <= mtu_bytes {
        return vec![packet.to_vec()];
    }
    let field = be16(packet, 6);
    let (first_offset, more) = (field & OFFSET, field & MORE_FRAGMENTS);
    let units = (packet.len() - header.header_bytes).div_ceil(8);
    if !header.may_fragment
        || mtu_bytes < header.header_bytes + 8
        || usize::from(first_offset) + units > usize::from(OFFSET) + 1
    {
        return Vec::new();
    }
    let mut fragments = Vec::new();
    let mut head = packet[..header.header_bytes].to_vec();
    let mut at = header.header_bytes;
    while at < packet.len() {
        let room = (mtu_bytes - head.len()) & !7;
        let payload = &packet[at..packet.len().min(at + room)];
        let offset = first_offset + ((at - header.header_bytes) >> 3) as u16;
        at += payload.len();
        let flags = if at < packet.len() { MORE_FRAGMENTS } else { more };
        let mut piece = head.clone();
        put16(&mut piece, 2, (head.len() + payload.len()) as u16);
        put16(&mut piece, 6, offset | flags);
        renew_ipv4_checksum(&mut piece);
        piece.extend_from_slice(payload);
        fragments.push(piece);
        if fragments.len() == 1 {
            let options = copied_options(&head[IPV4_BYTES..]);
            head.truncate(IPV4_BYTES);
            head[0] = 0x40 | ((IPV4_BYTES + options.len()) >> 2) as u8;
            head.extend_from_slice(&options);
        }
    }
    fragments
}

/// Keep the options every fragment carries, those with the copied flag, padded to whole words (RFC 791 section 3.1).
fn copied_options(options: &[u8]) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut at = 0;
    while at < options.len() && options[at] != END_OF_OPTIONS {
        if options[at] == NO_OPERATION {
            at += 1;
            continue;
        }
        let size = options.get(at + 1).map_or(0, |&size| usize::from(size));
        if size < 2 || at + size > options.len() {
            break; // the rest is not options; the first fragment carries it as it came
        }
        if options[at] & COPIED != 0 {
            kept.extend_from_slice(&options[at..at + size]);
        }
        at += size;
    }
    kept.resize(kept.len().next_multiple_of(4), 0);
    kept
}

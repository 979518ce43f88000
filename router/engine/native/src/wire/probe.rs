//! Probes: control packets that ask a peer's data path whether it is there; router/wire/probe.py draws them.

use super::packet::{be16, be32};

pub const REQUEST: u8 = 1;
pub const ANSWER: u8 = 2;
pub const HEADER_BYTES: usize = 28;

const FIRST: u8 = 5;
const CONTROL: u8 = 0x80;
const OPTION_HEAD: u32 = 0xFFFF_8204;
const KIND_AT: usize = 12;
const SIZE_AT: usize = 14;

/// A whole probe's header.
pub type Header = [u8; HEADER_BYTES];

/// Return the header of a control packet whose VNI was looked at; None when it is no probe.
///
/// A request must be as long as it says, an answer the header alone.
pub fn decode(datagram: &[u8]) -> Option<Header> {
    let header: &Header = datagram.first_chunk()?;
    let is_control = header[0] == FIRST && header[1] & CONTROL != 0 && be16(header, 2) == 0;
    if !is_control || be32(header, 8) & 0xFFFF_FF1F != OPTION_HEAD {
        return None;
    }
    let size = usize::from(be16(header, SIZE_AT));
    let whole = match header[KIND_AT] {
        REQUEST => datagram.len() == size,
        ANSWER => datagram.len() == HEADER_BYTES,
        _ => false,
    };
    (whole && size >= HEADER_BYTES).then_some(*header)
}

/// Tell a request from an answer.
pub fn is_request(header: &Header) -> bool {
    header[KIND_AT] == REQUEST
}

/// Return the answer to the request that begins with this header.
pub fn answer_to(mut header: Header) -> Header {
    header[KIND_AT] = ANSWER;
    header
}

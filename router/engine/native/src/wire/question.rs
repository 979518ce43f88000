//! Questions and replies about packets: control packets that the daemon reads; router/wire/question.py draws them.

use super::packet::{be16, be32};

/// Of a question always, of a reply at most.
pub const QUESTION_BYTES: usize = 512;

const HEADER_BYTES: usize = 28;
const FIRST: u8 = 5;
const CONTROL: u8 = 0x80;
const OPTION_HEAD: u32 = 0xFFFF_8304;
const KIND_AT: usize = 12;
const SIZE_AT: usize = 14;
const QUESTION: u8 = 1;
const REPLY: u8 = 2;

/// Tell whether a control packet, whose VNI was looked at, is one: as long as it says, a question as long as all are.
pub fn is_question(datagram: &[u8]) -> bool {
    let size = datagram.len();
    if size <= HEADER_BYTES || size > QUESTION_BYTES {
        return false;
    }
    let is_control = datagram[0] == FIRST && datagram[1] & CONTROL != 0 && be16(datagram, 2) == 0;
    is_control
        && be32(datagram, 8) & 0xFFFF_FF1F == OPTION_HEAD
        && usize::from(be16(datagram, SIZE_AT)) == size
        && match datagram[KIND_AT] {
            QUESTION => size == QUESTION_BYTES,
            REPLY => true,
            _ => false,
        }
}

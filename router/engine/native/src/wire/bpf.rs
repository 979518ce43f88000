//! Classic BPF: which packets a tap wants (router/wire/bpf.py, net/core/filter.c). Safe with any program; one that was not
//! checked matches nothing where it makes no sense.

/// struct sock_filter (linux/filter.h).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Instruction {
    pub code: u16,
    pub jt: u8,
    pub jf: u8,
    pub k: u32,
}

/// BPF_MAXINSNS.
pub const MOST_INSTRUCTIONS: usize = 4096;

const SCRATCH: usize = 16;
const LD: u16 = 0;
const LDX: u16 = 1;
const ST: u16 = 2;
const STX: u16 = 3;
const ALU: u16 = 4;
const JMP: u16 = 5;
const RET: u16 = 6;
const IMM: u16 = 0x00;
const ABS: u16 = 0x20;
const IND: u16 = 0x40;
const MEM: u16 = 0x60;
const LEN: u16 = 0x80;
const MSH: u16 = 0xA0;
/// Of an operation or a jump: the operand is X, not K.
const BY_X: u16 = 0x08;
/// Of a return: A, not K.
const GIVES_A: u16 = 0x10;
/// Of BPF_MISC: X to A, not A to X.
const TXA: u16 = 0x80;

/// Run a program over a packet; 0 means that it does not match. An empty one matches everything.
///
/// Jumps only go forward, so it ends after as many steps as it has instructions. A load past the packet's end gives 0, as
/// in the kernel.
pub fn run(program: &[Instruction], packet: &[u8]) -> u32 {
    if program.is_empty() { u32::MAX } else { steps(program, packet).unwrap_or(0) }
}

fn steps(program: &[Instruction], packet: &[u8]) -> Option<u32> {
    let (mut a, mut x, mut at) = (0u32, 0u32, 0usize);
    let mut cells = [0u32; SCRATCH];
    let size = packet.len() as u32;
    loop {
        let Instruction { code, jt, jf, k } = *program.get(at)?;
        at += 1;
        let operand = if code & BY_X != 0 { x } else { k };
        match code & 7 {
            LD => {
                a = match code & 0xE0 {
                    ABS => load(packet, k, code)?,
                    IND => load(packet, x.wrapping_add(k), code)?,
                    IMM => k,
                    LEN => size,
                    MEM => *cells.get(k as usize)?,
                    _ => return None,
                }
            }
            LDX => {
                x = match code & 0xE0 {
                    MSH => 4 * u32::from(packet.get(k as usize)? & 0x0F),
                    IMM => k,
                    LEN => size,
                    MEM => *cells.get(k as usize)?,
                    _ => return None,
                }
            }
            ST => *cells.get_mut(k as usize)? = a,
            STX => *cells.get_mut(k as usize)? = x,
            ALU => a = compute(code & 0xF0, a, operand)?,
            JMP if code & 0xF0 == 0 => at += k as usize,
            JMP => at += usize::from(if holds(code & 0xF0, a, operand)? { jt } else { jf }),
            RET => return Some(if code & GIVES_A != 0 { a } else { k }),
            _ if code & TXA != 0 => a = x,
            _ => x = a,
        }
    }
}

fn load(packet: &[u8], at: u32, code: u16) -> Option<u32> {
    let rest = packet.get(at as usize..)?;
    Some(match code & 0x18 {
        0x00 => u32::from_be_bytes(*rest.first_chunk()?),
        0x08 => u16::from_be_bytes(*rest.first_chunk()?).into(),
        0x10 => (*rest.first()?).into(),
        _ => return None,
    })
}

/// Return the result; None for a division by zero, which ends the program.
fn compute(operation: u16, a: u32, b: u32) -> Option<u32> {
    Some(match operation {
        0x00 => a.wrapping_add(b),
        0x10 => a.wrapping_sub(b),
        0x20 => a.wrapping_mul(b),
        0x30 => a.checked_div(b)?,
        0x40 => a | b,
        0x50 => a & b,
        0x60 => a.checked_shl(b).unwrap_or(0),
        0x70 => a.checked_shr(b).unwrap_or(0),
        0x80 => a.wrapping_neg(),
        0x90 => a.checked_rem(b)?,
        0xA0 => a ^ b,
        _ => return None,
    })
}

fn holds(jump: u16, a: u32, b: u32) -> Option<bool> {
    Some(match jump {
        0x10 => a == b,
        0x20 => a > b,
        0x30 => a >= b,
        0x40 => a & b != 0,
        _ => return None,
    })
}

//! The wire header: Geneve (RFC 8926) with one option of Podwire's own; router/wire/geneve.py draws it.

use super::packet::{be16, be32};
use crate::model::DropReason;

pub const BASE_BYTES: usize = 8;
pub const OPTION_BYTES: usize = 12;
pub const HEADER_BYTES: usize = BASE_BYTES + OPTION_BYTES;

const OPTION_CLASS: u16 = 0xFFFF;
const OPTION_TYPE: u8 = 0x81;
const OPTION_HEAD: u32 = (OPTION_CLASS as u32) << 16 | (OPTION_TYPE as u32) << 8 | 2;

pub const PARTIAL_CHECKSUM: u8 = 1;
pub const SEGMENT: u8 = 2;
pub const LAST_SEGMENT: u8 = 4;

pub const FLAGS_AT: usize = 12;
pub const FRAME_ID_AT: usize = 16;
pub const INDEX_AT: usize = 18;
pub const EPOCH_AT: usize = 19;

/// A decoded header; the inner packet starts `header_bytes` into the datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Encapsulation {
    pub header_bytes: usize,
    pub ip_version: u8,
    pub flags: u8,
    pub csum_offset: u8,
    pub csum_start: u16,
    pub frame_id: u16,
    pub index: u8,
    /// Of the sender, modulo 256; None without Podwire's option.
    pub epoch: Option<u8>,
}

impl Encapsulation {
    pub fn is_partial(&self) -> bool {
        self.flags & PARTIAL_CHECKSUM != 0
    }

    /// Tell whether it was sent in an earlier epoch than that: behind it by serial number arithmetic (RFC 1982).
    pub fn is_older(&self, epoch: u8) -> bool {
        self.epoch.is_some_and(|own| own.wrapping_sub(epoch) & 0x80 != 0)
    }
}

fn protocol(ip_version: u8) -> u16 {
    if ip_version == 4 { 0x0800 } else { 0x86DD }
}

/// Return the 20-byte header with Podwire's option.
pub fn encode(
    vni: u32,
    ip_version: u8,
    flags: u8,
    csum_offset: u8,
    csum_start: u16,
    frame_id: u16,
    epoch: u8,
) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[0] = (OPTION_BYTES >> 2) as u8;
    header[1] = 0x40;
    header[2..4].copy_from_slice(&protocol(ip_version).to_be_bytes());
    header[4..8].copy_from_slice(&(vni << 8).to_be_bytes());
    header[8..12].copy_from_slice(&OPTION_HEAD.to_be_bytes());
    header[FLAGS_AT] = flags;
    header[13] = csum_offset;
    header[14..16].copy_from_slice(&csum_start.to_be_bytes());
    header[FRAME_ID_AT..FRAME_ID_AT + 2].copy_from_slice(&frame_id.to_be_bytes());
    header[EPOCH_AT] = epoch;
    header
}

/// Return the 8-byte header without options, for a peer that does not know ours.
pub fn encode_plain(vni: u32, ip_version: u8) -> [u8; BASE_BYTES] {
    let mut header = [0; BASE_BYTES];
    header[2..4].copy_from_slice(&protocol(ip_version).to_be_bytes());
    header[4..8].copy_from_slice(&(vni << 8).to_be_bytes());
    header
}

/// Check the header of a datagram, or say why it is dropped.
///
/// A control packet of this network is `BadEncapsulation`: it holds no packet, but may be a probe (probe.rs).
pub fn decode(datagram: &[u8], vni: u32) -> Result<Encapsulation, DropReason> {
    if datagram.len() < BASE_BYTES {
        return Err(DropReason::BadEncapsulation);
    }
    if datagram[0] >> 6 != 0 {
        // A version not known.
        return Err(DropReason::BadEncapsulation);
    }
    if be32(datagram, 4) >> 8 != vni {
        return Err(DropReason::WrongNetwork);
    }
    let ip_version = match be16(datagram, 2) {
        0x0800 => 4,
        0x86DD => 6,
        _ => return Err(DropReason::BadEncapsulation),
    };
    let header_bytes = BASE_BYTES + (usize::from(datagram[0] & 0x3F) << 2);
    if datagram[1] & 0x80 != 0 || datagram.len() < header_bytes {
        return Err(DropReason::BadEncapsulation);
    }
    let plain = Encapsulation { header_bytes, ip_version, ..Default::default() };
    if header_bytes == BASE_BYTES {
        return Ok(plain);
    }
    if header_bytes == HEADER_BYTES && be32(datagram, 8) & 0xFFFF_FF1F == OPTION_HEAD {
        return Ok(with_option(plain, &datagram[FLAGS_AT..]));
    }
    walk_options(datagram, plain)
}

fn with_option(encap: Encapsulation, option: &[u8]) -> Encapsulation {
    Encapsulation {
        flags: option[0],
        csum_offset: option[1],
        csum_start: be16(option, 2),
        frame_id: be16(option, 4),
        index: option[6],
        epoch: Some(option[7]),
        ..encap
    }
}

/// Decode a header with options of others beside or instead of ours (RFC 8926 section 3.5).
fn walk_options(datagram: &[u8], mut found: Encapsulation) -> Result<Encapsulation, DropReason> {
    let (mut at, end) = (BASE_BYTES, found.header_bytes);
    while at < end {
        if at + 4 > end {
            return Err(DropReason::BadEncapsulation);
        }
        let (class, kind) = (be16(datagram, at), datagram[at + 2]);
        let after = at + 4 + (usize::from(datagram[at + 3] & 0x1F) << 2);
        if after > end {
            return Err(DropReason::BadEncapsulation);
        }
        if class == OPTION_CLASS && kind == OPTION_TYPE && after - at == OPTION_BYTES {
            found = with_option(found, &datagram[at + 4..after]);
        } else if kind & 0x80 != 0 {
            return Err(DropReason::BadEncapsulation);
        }
        at = after;
    }
    Ok(found)
}

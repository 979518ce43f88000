//! Cut super-packets into trains (router/wire/split.py).
//!
//!     super-packet
//!     → the headers of every segment, written side by side; lengths, sums, numbers and flags each its own
//!     → gathered: headers here, payloads where the super-packet lies (no byte of payload is copied)
//!       or flat: both in one buffer, where segments are small or their checksums must be finished
//!     → one train, or several where it is longer than a send

use std::io::IoSlice;

use arrayvec::ArrayVec;

use super::geneve;
use super::packet::*;
use super::shape::*;

/// Most pieces of one gathered send: a header and a payload for each of 128 segments.
pub const MOST_PIECES: usize = 256;
/// Segments with less payload are copied into one buffer: a piece costs the kernel more than so many bytes.
const LEAST_GATHERED_BYTES: usize = 256;

pub type Pieces<'a> = ArrayVec<IoSlice<'a>, MOST_PIECES>;

/// One train that was cut: `packets` datagrams of `row_bytes`, the last perhaps shorter, `bytes` in all.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    pub packets: usize,
    pub row_bytes: usize,
    pub bytes: usize,
    /// Payload bytes of the super-packet up to the end of this train.
    pub end: usize,
    head_bytes: usize,
    payload_at: usize,
    gathered: bool,
}

/// Cuts super-packets. What it cut last lies in its buffer until the next cut.
pub struct Splitter {
    vni: u32,
    max_segments: usize,
    frame_id: u16,
    rows: Vec<u8>,
    first: Vec<u8>,
}

impl Splitter {
    pub fn new(vni: u32, max_segments: usize) -> Self {
        let rows = vec![0; 2 * (MAX_PACKET_BYTES + 1)];
        Splitter { vni, max_segments: max_segments.clamp(1, MOST_PIECES / 2), frame_id: 0, rows, first: Vec::new() }
    }

    /// Cut the next train off a super-packet checked by `Shape::of_super_packet`: its payload from byte `start` on.
    ///
    /// With an `epoch` of this node the datagrams have our option; without they are plain Geneve with finished checksums.
    pub fn cut(
        &mut self,
        packet: &[u8],
        header: &IpHeader,
        vnet: &VnetHeader,
        shape: &Shape,
        epoch: Option<u8>,
        start: usize,
    ) -> Cut {
        let offload = epoch.is_some();
        let encap_bytes = if offload { geneve::HEADER_BYTES } else { geneve::BASE_BYTES };
        let step = usize::from(vnet.gso_size);
        let head_bytes = encap_bytes + shape.header_bytes;
        let row_bytes = head_bytes + step;
        let limit = (MAX_TRAIN_BYTES / row_bytes).clamp(1, self.max_segments);
        let payload_bytes = packet.len() - shape.header_bytes;
        let size = (payload_bytes - start).min(limit * step);
        let (full, tail) = (size / step, size % step);
        let count = (full + usize::from(tail > 0)).max(1);
        let gathered = offload && step >= LEAST_GATHERED_BYTES;
        let stride = if gathered { head_bytes } else { row_bytes };

        self.first.clear();
        if let Some(epoch) = epoch {
            self.frame_id = self.frame_id.wrapping_add(1);
            let flags = geneve::PARTIAL_CHECKSUM | geneve::SEGMENT;
            let encap = geneve::encode(
                self.vni,
                header.version,
                flags,
                shape.csum_offset as u8,
                shape.l4 as u16,
                self.frame_id,
                epoch,
            );
            self.first.extend_from_slice(&encap);
        } else {
            self.first.extend_from_slice(&geneve::encode_plain(self.vni, header.version));
        }
        self.first.extend_from_slice(&packet[..shape.header_bytes]);
        let flags_at = encap_bytes + shape.l4 + 13;
        let tcp_flags = if shape.is_tcp() { self.first[flags_at] } else { 0 };
        if shape.is_tcp() {
            self.first[flags_at] &= !(FIN | PSH | CWR);
        }
        let last_at = (count - 1) * stride;
        if count > 1 || tail == 0 {
            let each = if full > 0 { step } else { 0 };
            set_lengths(&mut self.first[encap_bytes..], header.version, shape, packet.len(), each);
            for row in 0..count {
                self.rows[row * stride..row * stride + head_bytes].copy_from_slice(&self.first);
            }
        }
        if tail > 0 {
            let was_bytes = if full > 0 { shape.header_bytes + step } else { packet.len() };
            set_lengths(&mut self.first[encap_bytes..], header.version, shape, was_bytes, tail);
            self.rows[last_at..last_at + head_bytes].copy_from_slice(&self.first);
        }
        if offload {
            self.rows[last_at + geneve::FLAGS_AT] |= geneve::LAST_SEGMENT;
            for row in 0..count {
                self.rows[row * stride + geneve::INDEX_AT] = row as u8;
            }
        }
        if shape.is_tcp() {
            let sequence = be32(packet, shape.l4 + 4).wrapping_add(start as u32);
            let at = encap_bytes + shape.l4 + 4;
            for row in 0..count {
                let own = sequence.wrapping_add((row * step) as u32);
                self.rows[row * stride + at..row * stride + at + 4].copy_from_slice(&own.to_be_bytes());
            }
            if start == 0 {
                self.rows[flags_at] |= tcp_flags & CWR;
            }
            if start + size == payload_bytes {
                self.rows[last_at + flags_at] |= tcp_flags & (FIN | PSH);
            }
        }
        if header.may_fragment {
            self.number(encap_bytes, stride, count, (start / step) as u16);
        }
        let cut = Cut {
            packets: count,
            row_bytes,
            bytes: count * head_bytes + size,
            end: start + size,
            head_bytes,
            payload_at: shape.header_bytes + start,
            gathered,
        };
        if !gathered {
            self.lay_out(&cut, packet, step);
            if !offload {
                for row in self.rows[..cut.bytes].chunks_mut(row_bytes) {
                    finish_checksum(&mut row[encap_bytes..], shape.l4 as u16, shape.csum_offset);
                }
            }
        }
        cut
    }

    /// Give every segment its own IPv4 identification, as they may be fragmented (RFC 6864 section 4).
    fn number(&mut self, encap_bytes: usize, stride: usize, count: usize, first: u16) {
        for row in 0..count {
            let header = &mut self.rows[row * stride + encap_bytes..];
            let own = be16(header, 4).wrapping_add(first).wrapping_add(row as u16);
            put16(header, 4, own);
            renew_ipv4_checksum(header);
        }
    }

    fn lay_out(&mut self, cut: &Cut, packet: &[u8], step: usize) {
        let payload = &packet[cut.payload_at..cut.payload_at + cut.bytes - cut.packets * cut.head_bytes];
        for (row, piece) in payload.chunks(step).enumerate() {
            let at = row * cut.row_bytes + cut.head_bytes;
            self.rows[at..at + piece.len()].copy_from_slice(piece);
        }
    }

    /// Point at the datagrams of a cut, one after the other.
    pub fn pieces<'a>(&'a self, cut: &Cut, packet: &'a [u8], pieces: &mut Pieces<'a>) {
        pieces.clear();
        if !cut.gathered {
            pieces.push(IoSlice::new(&self.rows[..cut.bytes]));
            return;
        }
        let payload = &packet[cut.payload_at..cut.payload_at + cut.bytes - cut.packets * cut.head_bytes];
        let step = cut.row_bytes - cut.head_bytes;
        let heads = self.rows[..cut.packets * cut.head_bytes].chunks_exact(cut.head_bytes);
        for (row, head) in heads.enumerate() {
            pieces.push(IoSlice::new(head));
            let at = row * step;
            if at < payload.len() {
                pieces.push(IoSlice::new(&payload[at..payload.len().min(at + step)]));
            }
        }
    }

    /// The datagrams of a cut that was laid out flat.
    pub fn flat(&self, cut: &Cut) -> Option<&[u8]> {
        (!cut.gathered).then(|| &self.rows[..cut.bytes])
    }
}

//! Join trains into super-packets (router/wire/merge.py).
//!
//!     train (rows of equal length, the last may be shorter)
//!       → the longest run of rows that continue the first: same flow, next sequence number, nothing else different
//!       → virtio header + first header; the payloads stay where they lie
//!
//! What is not the same flow's next packet, bit for bit, ends the run: joining must never change what arrives.

use super::geneve::{self, Encapsulation};
use super::packet::*;
use super::shape::*;

/// A train as it was received: rows of `step` bytes, the last perhaps shorter.
#[derive(Clone, Copy)]
pub struct Train<'a> {
    pub bytes: &'a [u8],
    pub step: usize,
}

/// The datagram at hand: where it begins in the train, and what its headers say.
#[derive(Clone, Copy)]
pub struct First<'a> {
    pub at: usize,
    pub encap: &'a Encapsulation,
    pub header: &'a IpHeader,
    pub shape: &'a Shape,
}

impl First<'_> {
    fn headers(&self) -> usize {
        self.encap.header_bytes + self.shape.header_bytes
    }

    fn l4(&self) -> usize {
        self.encap.header_bytes + self.shape.l4
    }
}

/// Finds runs and writes their headers. One buffer: not for two threads.
pub struct Merger {
    max_segments: usize,
    /// Bits of a row's headers that must equal the first row's.
    same: Vec<u8>,
    head: Vec<u8>,
}

impl Merger {
    /// Join at most `max_segments` UDP datagrams: more the kernel refuses (virtio_net_hdr_to_skb, UDP_MAX_SEGMENTS).
    pub fn new(max_segments: usize) -> Self {
        Merger { max_segments, same: Vec::new(), head: Vec::new() }
    }

    /// Return how many datagrams from the first on make one super-packet; 1 when only the first.
    pub fn run(&mut self, train: Train, first: &First) -> usize {
        let (step, shape, encap) = (train.step, first.shape, first.encap);
        let left = train.bytes.len() - first.at;
        let (mut full, tail) = (left / step, left % step);
        let headers = first.headers();
        // With options of others the fields would lie elsewhere.
        if full < 1 || step <= headers || full + usize::from(tail > 0) < 2 || encap.header_bytes != geneve::HEADER_BYTES
        {
            return 1;
        }
        let payload = step - headers;
        let row = &train.bytes[first.at..first.at + step];
        if shape.is_tcp() {
            if row[first.l4() + 13] & !ECE != ACK {
                return 1;
            }
        } else if usize::from(be16(row, first.l4() + 4)) != step - first.l4() {
            return 1;
        }
        full = full.min((MAX_PACKET_BYTES - shape.header_bytes) / payload);
        let most = if shape.is_tcp() { full + 1 } else { self.max_segments };
        full = full.min(most);
        if encap.flags & geneve::SEGMENT != 0 {
            return self.of_one_frame(train, first, most.min(full + 1));
        }
        if first.header.version == 4 {
            full = rightly_numbered(train, first, full);
        }
        self.mask(first);
        // The last row often has closing flags of its own, so it is not asked to be a middle one.
        let middle = if full * step == left { full - 1 } else { full };
        let count = self.middle(train, first, middle, payload);
        let after = first.at + count * step;
        let more = step.min(train.bytes.len() - after);
        if count * payload + shape.header_bytes + more > MAX_PACKET_BYTES + headers {
            return count;
        }
        count + usize::from(count < most && more > headers && self.closes(train, first, after, more, count))
    }

    /// Count the datagrams that the option says are the next segments of one super-packet.
    ///
    /// Only the option is looked at: the sending router made all their headers from one. If it lies, it puts bytes of
    /// its own into a flow of its own, whose source was checked; it could have sent them so in the first place.
    fn of_one_frame(&self, train: Train, first: &First, most: usize) -> usize {
        let (bytes, step, encap) = (train.bytes, train.step, first.encap);
        let mut count = 1;
        let mut last = encap.flags & geneve::LAST_SEGMENT != 0;
        while count < most && !last {
            let at = first.at + count * step;
            if at + encap.header_bytes > bytes.len() {
                break;
            }
            let flags = bytes[at + geneve::FLAGS_AT];
            last = flags == encap.flags | geneve::LAST_SEGMENT;
            if (flags != encap.flags && !last)
                || be16(bytes, at + geneve::FRAME_ID_AT) != encap.frame_id
                || usize::from(bytes[at + geneve::INDEX_AT]) != usize::from(encap.index) + count
                || encap.epoch != Some(bytes[at + geneve::EPOCH_AT])
            {
                break;
            }
            count += 1;
        }
        // A shorter last row must be whole, and as long as it says.
        let start = first.at + (count - 1) * step;
        let end = bytes.len().min(start + step);
        let headers = first.headers();
        if first.shape.header_bytes + (count - 1) * (step - headers) + end - start > MAX_PACKET_BYTES + headers {
            return count - 1;
        }
        if end - start < step && (end - start <= headers || parse_ip(&bytes[start + encap.header_bytes..end]).is_none())
        {
            return count - 1;
        }
        count
    }

    /// Count the rows, the first included, that continue it with full length and no closing flag.
    fn middle(&self, train: Train, first: &First, full: usize, payload: usize) -> usize {
        let (step, tcp) = (train.step, first.shape.is_tcp());
        let one = &train.bytes[first.at..first.at + self.same.len()];
        let at = first.l4() + 4;
        let mut count = 1;
        while count < full {
            let start = first.at + count * step;
            let row = &train.bytes[start..start + self.same.len()];
            if differs(one, row, &self.same)
                || (tcp && be32(row, at) != be32(one, at).wrapping_add((count * payload) as u32))
            {
                break;
            }
            count += 1;
        }
        count
    }

    /// Tell whether the datagram at `after`, shorter or with closing flags, is the last of the run.
    fn closes(&mut self, train: Train, first: &First, after: usize, size: usize, count: usize) -> bool {
        let (headers, encap_bytes, shape) = (first.headers(), first.encap.header_bytes, first.shape);
        let (one, row) = (&train.bytes[first.at..first.at + headers], &train.bytes[after..after + size]);
        self.mask_closing(first);
        if differs(one, row, &self.same) || parse_ip(&row[encap_bytes..]).is_none() {
            return false;
        }
        if first.header.may_fragment && !numbered(one, row, encap_bytes, count) {
            return false;
        }
        let l4 = first.l4();
        if shape.is_tcp() {
            let ahead = be32(row, l4 + 4).wrapping_sub(be32(one, l4 + 4));
            if ahead != (count * (train.step - headers)) as u32 {
                return false;
            }
        } else if usize::from(be16(row, l4 + 4)) != size - l4 {
            return false;
        }
        let field = l4 + usize::from(shape.csum_offset);
        let now = be16(row, field);
        shift_sum(be16(one, field), size as i64 - train.step as i64) == if now == 0 { 0xFFFF } else { now }
    }

    /// Build the mask of bits that must agree within a run.
    fn mask(&mut self, first: &First) {
        self.same.clear();
        self.same.resize(first.headers(), 0xFF);
        // Frame id and index: whose frame it was is no matter.
        self.same[geneve::FRAME_ID_AT..=geneve::INDEX_AT].fill(0);
        self.same[geneve::FLAGS_AT] = geneve::PARTIAL_CHECKSUM;
        let (ip, l4) = (first.encap.header_bytes, first.l4());
        if first.header.version == 4 {
            self.same[ip + 4..ip + 6].fill(0);
            self.same[ip + 10..ip + 12].fill(0);
        }
        if first.shape.is_tcp() {
            self.same[l4 + 4..l4 + 8].fill(0);
        }
    }

    /// Make it the mask for a last row: lengths, sums and closing flags may differ.
    fn mask_closing(&mut self, first: &First) {
        let (ip, l4) = (first.encap.header_bytes, first.l4());
        if first.header.version == 4 {
            self.same[ip + 2..ip + 4].fill(0);
            self.same[ip + 10..ip + 12].fill(0);
        } else {
            self.same[ip + 4..ip + 6].fill(0);
        }
        let field = l4 + usize::from(first.shape.csum_offset);
        self.same[field..field + 2].fill(0);
        if first.shape.is_tcp() {
            self.same[l4 + 13] = !(FIN | PSH);
        } else {
            self.same[l4 + 4..l4 + 6].fill(0);
        }
    }

    /// Write the virtio header and the headers of `count` datagrams joined, as `run` found them, and return them with
    /// the payload bytes that follow. All that is not a length, sum or closing flag is the first packet's.
    pub fn head(&mut self, train: Train, first: &First, count: usize) -> (&[u8], usize) {
        let (step, shape) = (train.step, first.shape);
        let headers = first.headers();
        let payload = step - headers;
        let last_at = first.at + (count - 1) * step;
        let last_bytes = step.min(train.bytes.len() - last_at) - headers;
        let size = (count - 1) * payload + last_bytes;
        let ip = first.at + first.encap.header_bytes;
        let gso_type = match (shape.is_tcp(), first.header.version) {
            (true, 4) => GSO_TCPV4,
            (true, _) => GSO_TCPV6,
            (false, _) => GSO_UDP_L4,
        };
        let vnet = VnetHeader {
            flags: NEEDS_CSUM,
            gso_type,
            hdr_len: shape.header_bytes as u16,
            gso_size: payload as u16,
            csum_start: shape.l4 as u16,
            csum_offset: shape.csum_offset,
        };
        self.head.clear();
        self.head.extend_from_slice(&vnet.to_bytes());
        self.head.extend_from_slice(&train.bytes[ip..ip + shape.header_bytes]);
        let header = &mut self.head[VNET_BYTES..];
        set_lengths(header, first.header.version, shape, payload + shape.header_bytes, size);
        if shape.is_tcp() {
            header[shape.l4 + 13] |= train.bytes[last_at + first.l4() + 13] & (FIN | PSH);
        }
        (&self.head, size)
    }
}

/// Count the rows whose IPv4 checksum fits their identification: the two differ by row, their sum does not.
///
/// A packet that may be fragmented must also have the number that the kernel will give it when it cuts the super-packet
/// (inet_gso_segment); what may not has a number without meaning (RFC 6864 section 4.1).
fn rightly_numbered(train: Train, first: &First, full: usize) -> usize {
    let ip = first.encap.header_bytes;
    let row = |count: usize| &train.bytes[first.at + count * train.step..];
    let sum = |row: &[u8]| (u32::from(be16(row, ip + 4)) + u32::from(be16(row, ip + 10))) % 0xFFFF;
    let (one, expected) = (row(0), sum(row(0)));
    let fits = |&count: &usize| {
        sum(row(count)) == expected && (!first.header.may_fragment || numbered(one, row(count), ip, count))
    };
    (1..full).take_while(fits).count() + 1
}

/// Tell whether a row has the identification `count` after the first's.
fn numbered(one: &[u8], row: &[u8], ip: usize, count: usize) -> bool {
    be16(row, ip + 4) == be16(one, ip + 4).wrapping_add(count as u16)
}

fn differs(one: &[u8], other: &[u8], mask: &[u8]) -> bool {
    let pairs = one.iter().zip(other).zip(mask);
    pairs.fold(0, |found, ((one, other), mask)| found | ((one ^ other) & mask)) != 0
}

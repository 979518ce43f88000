//! A kernel in memory: makes what is read, checks what is written as the real one would, and fails at random.

use std::io::IoSlice;
use std::net::SocketAddr;
use std::os::fd::RawFd;

use podwire_engine::kernel::{Arrival, EAGAIN, EINTR, EINVAL, EIO, EMSGSIZE, ENOBUFS, ENOMEM, Errno, Kernel};
use podwire_engine::wire::geneve;
use podwire_engine::wire::packet::*;
use podwire_engine::wire::shape::{MAX_TRAIN_BYTES, Shape};

use crate::random::Random;
use crate::traffic::{Traffic, VNI};

/// What a planted bug says; anything else is a real one.
pub const PLANTED: &str = "planted";
/// What kernels take since Linux 6.9.
pub const MOST_SEGMENTS: usize = 128;
const EBADFD: Errno = 77;
const ENETUNREACH: Errno = 101;
const ECONNREFUSED: Errno = 111;

/// What the kernel saw: the accounts must agree with it.
#[derive(Clone, Copy, Default, Debug)]
pub struct Seen {
    pub reads: u64,
    pub trains: u64,
    pub rows: u64,
    pub sent_datagrams: u64,
    pub written_packets: u64,
    /// Super-packets made of trains, and trains made of super-packets or of runs.
    pub joined: u64,
    pub trains_sent: u64,
    /// Answers to probes it was asked to send, whether it did or not.
    pub answered: u64,
    pub errors: u64,
}

impl Seen {
    pub fn add(&mut self, other: &Seen) {
        self.reads += other.reads;
        self.trains += other.trains;
        self.rows += other.rows;
        self.sent_datagrams += other.sent_datagrams;
        self.written_packets += other.written_packets;
        self.joined += other.joined;
        self.trains_sent += other.trains_sent;
        self.answered += other.answered;
        self.errors += other.errors;
    }
}

pub struct Memory {
    pub random: Random,
    pub traffic: Traffic,
    /// How many reads or trains are left before there is nothing more.
    pub waiting: usize,
    /// Once in so many calls one fails; 0 for never.
    pub failing: usize,
    /// Once in so many calls there is a bug; 0 for never.
    pub panicking: usize,
    /// Whether frames written come from the underlay, and so are wholly the engine's making.
    pub inward: bool,
    /// The node's own, in every datagram that has our option.
    pub epoch: u8,
    max_segments: usize,
    mtu_bytes: usize,
    /// From which the next train comes.
    pub from: Vec<SocketAddr>,
    pub seen: Seen,
    now_ns: u64,
    row: Vec<u8>,
    whole: Vec<u8>,
}

impl Memory {
    pub fn new(mut random: Random, max_segments: usize, mtu_bytes: usize) -> Self {
        let traffic = Traffic::new(&mut random);
        Memory {
            random,
            traffic,
            waiting: 0,
            failing: 0,
            panicking: 0,
            inward: false,
            epoch: 0,
            max_segments,
            mtu_bytes,
            from: Vec::new(),
            seen: Seen::default(),
            now_ns: 1,
            row: Vec::new(),
            whole: Vec::new(),
        }
    }

    fn may_fail(&mut self, errors: &[Errno]) -> Result<(), Errno> {
        if self.panicking > 0 && self.random.once_in(self.panicking) {
            panic!("{}", PLANTED);
        }
        if self.failing > 0 && self.random.once_in(self.failing) {
            self.seen.errors += 1;
            return Err(self.random.pick(errors));
        }
        Ok(())
    }

    /// Check a frame as virtio_net_hdr_to_skb does; return how many packets it stands for.
    fn check_frame(&self, frame: &[u8]) -> Result<u64, Errno> {
        assert!(frame.len() <= VNET_BYTES + MAX_PACKET_BYTES, "a frame of {} bytes", frame.len());
        let (vnet, packet) = frame.split_first_chunk().expect("a frame without a virtio header");
        let vnet = VnetHeader::read(vnet);
        let header =
            parse_ip(packet).unwrap_or_else(|| panic!("no IP packet: {:02x?}", &packet[..packet.len().min(60)]));
        let end = usize::from(vnet.csum_start) + usize::from(vnet.csum_offset) + 2;
        let fits = vnet.flags & NEEDS_CSUM == 0 || end <= packet.len();
        if vnet.gso_type == GSO_NONE {
            // A Pod's own header goes to its neighbour as it came; the kernel refuses what does not fit.
            assert!(fits || !self.inward, "a checksum outside the packet: {vnet:?}");
            let whole = usize::from(vnet.csum_start) >= header.header_bytes || vnet.flags & NEEDS_CSUM == 0;
            assert!(whole || !self.inward, "a checksum inside the IP header: {vnet:?}");
            return if fits { Ok(1) } else { Err(EINVAL) };
        }
        let shape = Shape::of_super_packet(packet, &header, &vnet)
            .unwrap_or_else(|| panic!("{vnet:?} does not fit {header:?}"));
        if self.inward {
            assert_eq!(usize::from(vnet.hdr_len), shape.header_bytes);
            assert!(packet.len() > shape.header_bytes + usize::from(vnet.gso_size), "joined, but of one packet");
            if !shape.is_tcp() {
                assert_eq!(usize::from(be16(packet, shape.l4 + 4)), packet.len() - shape.l4, "UDP length");
                assert!(shape.packets_in(packet.len(), vnet.gso_size) <= self.max_segments as u64);
            }
        }
        Ok(shape.packets_in(packet.len(), vnet.gso_size))
    }
}

/// Check a datagram: Geneve that its receiver takes, with one whole IP packet in it that fits the path.
fn check_datagram(datagram: &[u8], plain: bool, mtu_bytes: usize, epoch: u8) {
    let encap = geneve::decode(datagram, VNI)
        .unwrap_or_else(|reason| panic!("sent {reason:?}: {:02x?}", &datagram[..datagram.len().min(80)]));
    let packet = &datagram[encap.header_bytes..];
    let header =
        parse_ip(packet).unwrap_or_else(|| panic!("sent no IP packet: {:02x?}", &datagram[..datagram.len().min(80)]));
    assert_eq!(header.version, encap.ip_version);
    assert!(packet.len() <= mtu_bytes, "{} bytes are more than the path takes", packet.len());
    assert_eq!(encap.header_bytes, if plain { geneve::BASE_BYTES } else { geneve::HEADER_BYTES });
    assert_eq!(encap.epoch, (!plain).then_some(epoch));
    if encap.is_partial() {
        let start = usize::from(encap.csum_start);
        assert!(
            start >= header.header_bytes && start + usize::from(encap.csum_offset) + 2 <= packet.len(),
            "{encap:?}"
        );
    }
    if encap.flags & geneve::SEGMENT != 0 {
        let shape = Shape::of(packet, &header, encap.csum_start, encap.csum_offset.into());
        assert!(shape.is_some(), "a segment of nothing: {encap:?} {header:?}");
    }
}

/// Check an answer to a probe, byte by byte as docs/architecture.md draws it: the header of one, of kind 2.
fn check_answer(datagram: &[u8]) {
    assert_eq!(datagram.len(), 28, "an answer is a header alone");
    assert_eq!((datagram[0], datagram[1] & 0x80, &datagram[2..4]), (5, 0x80, &[0; 2][..]));
    assert_eq!((be32(datagram, 4) >> 8, &datagram[8..11], datagram[11] & 31), (VNI, &[0xFF, 0xFF, 0x82][..], 4));
    assert_eq!(datagram[12], 2, "answered with no answer");
    assert!(be16(datagram, 14) >= 28, "an answer that is longer than its request");
}

impl Kernel for Memory {
    fn read(&mut self, fd: RawFd, into: &mut [u8]) -> Result<usize, Errno> {
        if self.waiting == 0 {
            return Err(EAGAIN);
        }
        self.may_fail(&[EAGAIN, EINTR, EBADFD])?;
        self.waiting -= 1;
        self.seen.reads += 1;
        Ok(self.traffic.frame(&mut self.random, fd as u8 + 1, into))
    }

    fn write(&mut self, _: RawFd, frame: &[IoSlice]) -> Result<(), Errno> {
        self.may_fail(&[EINVAL, EIO, EAGAIN, EBADFD])?;
        let checked = match frame {
            [whole] => self.check_frame(whole),
            pieces => {
                let mut whole = std::mem::take(&mut self.whole);
                whole.clear();
                pieces.iter().for_each(|piece| whole.extend_from_slice(piece));
                let checked = self.check_frame(&whole);
                self.whole = whole;
                checked
            }
        };
        let packets = checked?;
        self.seen.written_packets += packets;
        self.seen.joined += u64::from(self.inward && packets > 1);
        Ok(())
    }

    fn receive(&mut self, into: &mut [u8]) -> Result<Arrival, Errno> {
        if self.waiting == 0 {
            return Err(EAGAIN);
        }
        self.waiting -= 1;
        self.may_fail(&[ECONNREFUSED, EINTR])?;
        let from = self.random.pick(&self.from);
        let SocketAddr::V4(sender) = from else { panic!("all are IPv4") };
        let node = if self.random.once_in(30) { 2 } else { sender.ip().octets()[3].min(4) };
        let from = (!self.random.once_in(500)).then_some(from);
        self.seen.trains += 1;
        if self.random.once_in(500) {
            self.seen.rows += 1;
            return Ok(Arrival { size: 0, segment_bytes: 0, truncated: false, from });
        }
        let (size, segment_bytes) = self.traffic.train(&mut self.random, node, into);
        self.seen.rows += size.div_ceil(segment_bytes) as u64;
        Ok(Arrival { size, segment_bytes, truncated: self.random.once_in(500), from })
    }

    fn send(&mut self, to: &SocketAddr, datagrams: &[IoSlice], segment_bytes: u16) -> Result<(), Errno> {
        if let [answer] = datagrams
            && answer.get(1).is_some_and(|bits| bits & 0x80 != 0)
        {
            check_answer(answer);
            assert_eq!(segment_bytes, 0);
            self.seen.answered += 1;
            return self.may_fail(&[EAGAIN, ENOBUFS, EINTR, ENETUNREACH]);
        }
        self.may_fail(&[EAGAIN, ENOBUFS, ENOMEM, EMSGSIZE, EINVAL, EIO, EINTR, ENETUNREACH])?;
        let plain = to.port() == 3;
        let size: usize = datagrams.iter().map(|piece| piece.len()).sum();
        assert!(size <= MAX_TRAIN_BYTES, "a send of {size} bytes");
        let step = if segment_bytes > 0 { usize::from(segment_bytes) } else { size };
        let rows = size.div_ceil(step);
        assert!(rows <= self.max_segments, "a train of {rows} datagrams");
        if let [whole] = datagrams {
            whole.chunks(step).for_each(|row| check_datagram(row, plain, self.mtu_bytes, self.epoch));
        } else {
            // As the kernel cuts them: by length, whatever the pieces were.
            let mut row = std::mem::take(&mut self.row);
            row.clear();
            for piece in datagrams {
                let mut rest: &[u8] = piece;
                while row.len() + rest.len() >= step && !rest.is_empty() {
                    let (mine, next) = rest.split_at(step - row.len());
                    row.extend_from_slice(mine);
                    check_datagram(&row, plain, self.mtu_bytes, self.epoch);
                    row.clear();
                    rest = next;
                }
                row.extend_from_slice(rest);
            }
            if !row.is_empty() {
                check_datagram(&row, plain, self.mtu_bytes, self.epoch);
            }
            self.row = row;
        }
        self.seen.sent_datagrams += rows as u64;
        self.seen.trains_sent += u64::from(rows > 1);
        Ok(())
    }

    fn await_room(&mut self, _: i32) -> bool {
        self.random.once_in(2)
    }

    fn now_ns(&mut self) -> u64 {
        self.now_ns += self.random.next() & 0xFFFF;
        self.now_ns
    }

    fn wall_ns(&mut self) -> u64 {
        self.now_ns()
    }
}

//! Into the Pods: from the underlay socket to TUN fds (router/engine/ingress.py).
//!
//! receive a train (UDP_GRO) → a known peer?
//! → each datagram: Geneve header; is it a probe, or of an epoch that is over?
//! → IP header → does the peer own the inner source? → way, remembered for the flow
//! → TCP or UDP with partial checksum: how many datagrams after it continue it? join them into one super-packet
//! → take a hop, write the frame to the TUN
//! → else: the slow path

use std::io::IoSlice;
use std::net::SocketAddr;

use arrayvec::ArrayVec;

use crate::decide::transit;
use crate::drops::Cause;
use crate::exceptions::{Exception, Party};
use crate::fates::Handed;
use crate::forwarder::{BATCH_BYTES, Forwarder, Settings};
use crate::kernel::{Arrival, EAGAIN, Kernel};
use crate::model::{DropReason, Named, Origin, Slot, Way};
use crate::taps::{Glimpse, Side};
use crate::wire::geneve::{self, Encapsulation};
use crate::wire::merge::{First, Merger, Train};
use crate::wire::packet::*;
use crate::wire::probe;
use crate::wire::question;
use crate::wire::shape::Shape;

/// After so many super-packets that a TUN refused, none accepted between, none are made any more.
const MOST_REFUSED: u32 = 16;
/// Before the first datagram: the virtio header is written there when Geneve's is shorter than it.
const HEADROOM: usize = 16;
const BUFFER_BYTES: usize = 256 * 1024;
/// Payloads smaller than that are copied side by side for the write: a piece costs the kernel more.
const LEAST_GATHERED_BYTES: usize = 256;
/// Most payloads of one gathered write, and a header.
const MOST_PIECES: usize = MAX_PACKET_BYTES / LEAST_GATHERED_BYTES + 4;

/// Buffers of the way in.
pub struct IngressSpace {
    buffer: Box<[u8]>,
    merger: Merger,
    joined: Vec<u8>,
}

impl IngressSpace {
    pub fn new(settings: &Settings) -> Self {
        IngressSpace {
            buffer: vec![0; BUFFER_BYTES].into_boxed_slice(),
            merger: Merger::new(settings.max_segments),
            joined: Vec::with_capacity(VNET_BYTES + MAX_PACKET_BYTES),
        }
    }
}

/// A train that came from a known peer, from the headroom to `end`: datagrams of `step` bytes.
#[derive(Clone, Copy)]
struct Received {
    peer: Slot,
    from: SocketAddr,
    end: usize,
    step: usize,
}

/// A datagram of a known peer: where it lies in the buffer, and what its headers say.
struct Datagram {
    at: usize,
    end: usize,
    encap: Encapsulation,
    header: IpHeader,
}

impl Datagram {
    fn packet_at(&self) -> usize {
        self.at + self.encap.header_bytes
    }

    fn packet_bytes(&self) -> usize {
        self.end - self.packet_at()
    }
}

impl<K: Kernel> Forwarder<K> {
    /// Receive and deliver at most `most` trains; return how many there were.
    pub fn ingress_batch(&mut self, most: usize) -> usize {
        let Some(mut space) = self.ingress.take() else { return 0 };
        let mut received = 0;
        let mut reads = 0;
        while reads < most && received < BATCH_BYTES {
            match self.kernel.receive(&mut space.buffer[HEADROOM..]) {
                Err(EAGAIN) => break,
                Ok(arrival) => {
                    received += arrival.size;
                    self.take_in(&mut space, arrival);
                }
                Err(_) => {} // an ICMP error about something sent earlier; nothing was received
            }
            reads += 1;
        }
        self.ingress = Some(space);
        self.moved_bytes += received as u64;
        self.end_batch(reads);
        reads
    }

    fn take_in(&mut self, space: &mut IngressSpace, arrival: Arrival) {
        self.tick();
        let size = arrival.size;
        let packets = if size > 0 { size.div_ceil(arrival.segment_bytes) } else { 1 } as u64;
        let peer = arrival.from.as_ref().and_then(|from| self.place.sender(from));
        let whole = size > 0 && !arrival.truncated;
        if let (Some(peer), Some(from), true) = (peer, arrival.from, whole) {
            self.deliver(space, Received { peer, from, end: HEADROOM + size, step: arrival.segment_bytes });
            return;
        }
        let (tally, origin, reason) = match peer {
            None => (&mut self.strangers, Origin::Router, DropReason::UnknownPeer),
            Some(peer) => (self.tally(Origin::Peer(peer)), Origin::Peer(peer), DropReason::BadEncapsulation),
        };
        tally.received_frames += 1;
        tally.received_packets += packets;
        tally.received_bytes += size as u64;
        tally.drop(reason, packets);
        let source = self.place.named(origin).or(arrival.from.map(Named::Endpoint));
        if let Some(source) = source {
            self.note(Cause { source, reason, flow: None }, packets, arrival.segment_bytes, 0, None);
        }
        if self.watching.is_some() {
            let fate = Way::Drop(reason);
            // A stranger's one by one; of a train that was cut short nobody knows where the rest ends.
            let (rows, packets) = if peer.is_none() { (packets as usize, 1) } else { (1, packets) };
            let glimpse = Glimpse { side: Side::Before, origin, source, meant: fate, fate, packets };
            for row in 0..rows {
                let start = row * arrival.segment_bytes;
                let datagram = &space.buffer[HEADROOM + start..HEADROOM + size.min(start + arrival.segment_bytes)];
                self.look(&glimpse, &[datagram], usize::MAX);
            }
        }
    }

    /// Deliver every datagram of a train, runs of them joined.
    fn deliver(&mut self, space: &mut IngressSpace, received: Received) {
        let Received { peer, end, step, .. } = received;
        let source = Origin::Peer(peer);
        let epoch = self.place.peer(peer).and_then(|peer| peer.known.epoch);
        let tally = self.tally(source);
        tally.received_frames += 1;
        let due = tally.received_packets + (end - HEADROOM).div_ceil(step) as u64;
        self.at_hand = Some((source, due));
        let mut at = HEADROOM;
        while at < end {
            let after = end.min(at + step);
            let decoded = geneve::decode(&space.buffer[at..after], self.settings.vni);
            let encap = match decoded {
                Ok(encap) => encap,
                Err(reason) => {
                    let datagram = &space.buffer[at..after];
                    if reason != DropReason::BadEncapsulation || !self.take_control(received, datagram) {
                        let tally = self.tally(source);
                        tally.received_packets += 1;
                        tally.received_bytes += (after - at) as u64;
                        self.drop_undecoded(source, datagram, reason);
                    }
                    at = after;
                    continue;
                }
            };
            let packet_at = at + encap.header_bytes;
            let tally = self.tally(source);
            tally.received_packets += 1;
            tally.received_bytes += (after - packet_at) as u64;
            if epoch.is_some_and(|epoch| encap.is_older(epoch)) {
                let meant = Way::Drop(DropReason::StaleEpoch);
                let handed = handed(peer, meant, &space.buffer[packet_at..after], self.mark());
                self.drop(&handed, DropReason::StaleEpoch);
                at = after;
                continue;
            }
            let header = parse_ip(&space.buffer[packet_at..after]).filter(|header| header.version == encap.ip_version);
            let Some(header) = header else {
                let meant = Way::Drop(DropReason::Malformed);
                let handed = handed(peer, meant, &space.buffer[packet_at..after], self.mark());
                self.drop(&handed, DropReason::Malformed);
                at = after;
                continue;
            };
            let way = self.way(header.addresses, source);
            if let Way::Local(to) = way {
                let datagram = Datagram { at, end: after, encap, header };
                at = self.deliver_to(space, received, to, &datagram);
                continue;
            }
            let handed = handed(peer, way, &space.buffer[packet_at..after], self.mark());
            match way {
                Way::Drop(reason) => self.drop(&handed, reason),
                Way::Reject(reason) => self.refuse(&handed, reason, 0),
                // Not decided for what a peer sent; a router that relays would stand here.
                Way::Local(_) | Way::Tunnel(_) => self.refuse(&handed, DropReason::WrongNode, 0),
            }
            at = after;
        }
        self.at_hand = None;
    }

    /// Answer a request, hand an answer or a question over; false for what is none of these. Its VNI was looked at.
    fn take_control(&mut self, received: Received, datagram: &[u8]) -> bool {
        let probe = probe::decode(datagram);
        if probe.is_none() && !question::is_question(datagram) {
            return false;
        }
        let slot = received.peer;
        self.tally(Origin::Peer(slot)).control_packets += 1;
        if let Some((_, due)) = &mut self.at_hand {
            *due -= 1; // it is no packet
        }
        if let Some(header) = probe.filter(probe::is_request) {
            // One that cannot be sent is as good as lost on the way.
            let _ = self.kernel.send(&received.from, &[IoSlice::new(&probe::answer_to(header))], 0);
        } else if let Some(serial) = self.place.peer(slot).map(|peer| peer.serial) {
            let received_ns = self.kernel.now_ns();
            let peer = Party { slot, serial };
            self.slow_path.push(match probe {
                Some(answer) => Exception::ProbeAnswered { peer, answer, received_ns },
                None => Exception::QuestionCame { peer, datagram: datagram.to_vec(), received_ns },
            });
        }
        true
    }

    /// Write a datagram, with those that continue it, to an attachment; return where the next begins.
    fn deliver_to(&mut self, space: &mut IngressSpace, received: Received, to: Slot, datagram: &Datagram) -> usize {
        let Received { peer, end, step, .. } = received;
        let (source, way) = (Origin::Peer(peer), Way::Local(to));
        let Datagram { at, end: after, encap, header } = datagram;
        let (packet_at, packet_bytes) = (datagram.packet_at(), datagram.packet_bytes());
        let came = handed(peer, way, &space.buffer[packet_at..*after], self.mark());
        let Some((mtu_bytes, hop)) = self.place.port(to).map(|port| (port.mtu_bytes, !port.is_node)) else {
            self.drop(&came, DropReason::NoAttachment);
            return *after;
        };
        if let Err(reason) = transit(header, packet_bytes, mtu_bytes, hop) {
            self.refuse(&came, reason, mtu_bytes);
            return *after;
        }
        let partial = encap.is_partial().then_some((encap.csum_start, u16::from(encap.csum_offset)));
        if let Some((start, offset)) = partial
            && (usize::from(start) < header.header_bytes || usize::from(start) + usize::from(offset) + 2 > packet_bytes)
        {
            self.drop(&came, DropReason::Malformed);
            return *after;
        }
        let mut joined = None;
        if let Some((start, offset)) = partial
            && *after < end
            && let Some(shape) = Shape::of(&space.buffer[packet_at..*after], header, start, offset)
            && (if shape.is_tcp() { self.merge_tcp } else { self.merge_udp })
        {
            let train = Train { bytes: &space.buffer[..end], step };
            let count = space.merger.run(train, &First { at: *at, encap, header, shape: &shape });
            joined = (count > 1).then_some((shape, count));
        }
        if hop {
            decrement_hop_limit(&mut space.buffer[packet_at..]);
        }
        if packet_bytes > mtu_bytes {
            let handed = Handed { aged: hop, ..handed(peer, way, &space.buffer[packet_at..*after], self.mark()) };
            let outcome = self.forward_in_fragments(source, handed.packet, partial, way, mtu_bytes);
            self.settle(&handed, outcome);
            return *after;
        }
        if let Some((shape, count)) = joined {
            return self.write_joined(space, received, to, datagram, &shape, count);
        }
        let vnet = match partial {
            Some((csum_start, csum_offset)) => {
                VnetHeader { flags: NEEDS_CSUM, csum_start, csum_offset, ..Default::default() }
            }
            None => VnetHeader::default(),
        };
        let start = packet_at - VNET_BYTES;
        space.buffer[start..packet_at].copy_from_slice(&vnet.to_bytes());
        let outcome = self.write(to, &[IoSlice::new(&space.buffer[start..*after])], 1, packet_bytes);
        let handed = Handed { aged: hop, ..handed(peer, way, &space.buffer[packet_at..*after], self.mark()) };
        self.settle(&handed, outcome);
        if outcome.is_ok() {
            self.see_after(source, way, 1, &[handed.packet]);
        }
        *after
    }

    /// Write `count` datagrams as one super-packet; return where the next begins.
    fn write_joined(
        &mut self,
        space: &mut IngressSpace,
        received: Received,
        to: Slot,
        datagram: &Datagram,
        shape: &Shape,
        count: usize,
    ) -> usize {
        let Received { peer, end, step, .. } = received;
        let (source, way) = (Origin::Peer(peer), Way::Local(to));
        let IngressSpace { buffer, merger, joined } = space;
        let Datagram { at, end: after, encap, header } = datagram;
        let train = Train { bytes: &buffer[..end], step };
        let (head, payload_bytes) = merger.head(train, &First { at: *at, encap, header, shape }, count);
        let headers = encap.header_bytes + shape.header_bytes;
        let joined_end = end.min(at + count * step);
        let payloads = buffer[*at..joined_end].chunks(step).map(|row| &row[headers..]);
        let packet_bytes = head.len() - VNET_BYTES + payload_bytes;
        let mark = self.mark();
        let outcome = if step - headers < LEAST_GATHERED_BYTES {
            joined.clear();
            joined.extend_from_slice(head);
            payloads.for_each(|payload| joined.extend_from_slice(payload));
            let outcome = self.write(to, &[IoSlice::new(joined)], count as u64, packet_bytes);
            if outcome.is_ok() {
                self.see_after(source, way, count as u64, &[&joined[VNET_BYTES..]]);
            }
            outcome
        } else {
            let mut pieces: ArrayVec<IoSlice, MOST_PIECES> = ArrayVec::new();
            pieces.push(IoSlice::new(head));
            payloads.for_each(|payload| pieces.push(IoSlice::new(payload)));
            let outcome = self.write(to, &pieces, count as u64, packet_bytes);
            if outcome.is_ok() && self.watching.is_some() {
                let mut seen: ArrayVec<&[u8], MOST_PIECES> = pieces.iter().map(|piece| &**piece).collect();
                seen[0] = &head[VNET_BYTES..];
                self.see_after(source, way, count as u64, &seen);
            }
            outcome
        };
        match outcome {
            Ok(()) => self.refused = 0,
            Err(DropReason::Malformed) => {
                self.refused += 1;
                if self.refused == MOST_REFUSED {
                    // Some kernels refuse super-packets on a TUN write (seen on 6.6.44): say so, and go on one by one.
                    (self.merge_tcp, self.merge_udp) = (false, false);
                    self.slow_path.push(Exception::OffloadFailed { feature: "tun_tso", peer: None, errno: 0 });
                }
            }
            Err(_) => {}
        }
        let tally = self.tally(source);
        tally.received_packets += count as u64 - 1;
        tally.received_bytes += (joined_end - after - (count - 1) * encap.header_bytes) as u64;
        let rows = buffer[*at..joined_end].chunks(step).map(|row| &row[encap.header_bytes..]);
        self.settle_joined(received, to, rows, outcome, mark);
        joined_end
    }

    /// Count the fate of packets that were joined, and let each be seen as it came.
    fn settle_joined<'a>(
        &mut self,
        received: Received,
        to: Slot,
        rows: impl ExactSizeIterator<Item = &'a [u8]>,
        outcome: Result<(), DropReason>,
        mut mark: usize,
    ) {
        let (source, way) = (Origin::Peer(received.peer), Way::Local(to));
        let tally = self.tally(source);
        let fate = match outcome {
            Ok(()) => {
                tally.delivered_packets += rows.len() as u64;
                way
            }
            Err(reason) => {
                tally.drop(reason, rows.len() as u64);
                Way::Drop(reason)
            }
        };
        if self.watching.is_none() && outcome.is_ok() {
            return;
        }
        let hop = !self.place.is_node(Origin::Port(to));
        for (row, packet) in rows.enumerate() {
            // Of the first alone a hop was taken: its header became that of all.
            let handed = Handed { aged: hop && row == 0, ..handed(received.peer, way, packet, mark) };
            mark = self.record(&handed, fate, 0);
        }
    }
}

/// A packet that a peer sent in a datagram.
fn handed(peer: Slot, meant: Way, packet: &[u8], mark: usize) -> Handed<'_> {
    let source = Origin::Peer(peer);
    Handed { source, meant, packet, aged: false, packet_bytes: packet.len(), packets: 1, mark }
}

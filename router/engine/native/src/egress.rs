//! Out of the Pods: from a TUN fd to another TUN fd or to the underlay socket (router/engine/egress.py).
//!
//!     read a frame (virtio header, IP packet or super-packet) where its datagram can stand
//!       → check the header → way, remembered for the flow → lives long enough, small enough?
//!       → local: take a hop, write the frame as it is
//!       → tunnel: a super-packet is cut into a train and sent; a packet gets its Geneve header in place and joins the
//!         run of its peer (runs.rs): one send for a run of small packets
//!       → else: the slow path
//!
//! The buffer, while runs of single packets grow:
//!
//!     | Geneve | packet | Geneve | packet | Geneve | next frame is read here …
//!     0                                   ^ at     ^ at + 20; the virtio header before it gives way to Geneve

use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::decide::transit;
use crate::exceptions::{Exception, Party};
use crate::forwarder::{BATCH_BYTES, Forwarder, Settings};
use crate::kernel::{EAGAIN, EINTR, Kernel};
use crate::model::{DropReason, Origin, Slot, Way};
use crate::runs::Runs;
use crate::sender::{Datagrams, Train};
use crate::view::{Peer, Port};
use crate::wire::geneve;
use crate::wire::packet::*;
use crate::wire::shape::Shape;
use crate::wire::split::{Pieces, Splitter};

const HEADER: usize = geneve::HEADER_BYTES;
const FRAME_AT: usize = HEADER - VNET_BYTES;
const BUFFER_BYTES: usize = 4 * (MAX_PACKET_BYTES + 1);
const LAST_START: usize = BUFFER_BYTES - HEADER - MAX_PACKET_BYTES - 1;

/// Buffers of the way out.
pub struct EgressSpace {
    buffer: Box<[u8]>,
    splitter: Splitter,
    runs: Runs,
}

impl EgressSpace {
    pub fn new(settings: &Settings) -> Self {
        EgressSpace {
            buffer: vec![0; BUFFER_BYTES].into_boxed_slice(),
            splitter: Splitter::new(settings.vni, settings.max_segments),
            runs: Runs::new(settings.max_segments),
        }
    }
}

/// What was read last: where it lies in the buffer, and what its headers say.
struct Frame {
    /// Where its datagram would begin; the IP packet begins a Geneve header later.
    at: usize,
    end: usize,
    header: IpHeader,
    vnet: VnetHeader,
    /// Of a super-packet; None for a single packet.
    shape: Option<Shape>,
    packets: u64,
}

impl Frame {
    fn partial(&self) -> Option<(u16, u16)> {
        (self.vnet.flags & NEEDS_CSUM != 0).then_some((self.vnet.csum_start, self.vnet.csum_offset))
    }
}

impl<K: Kernel> Forwarder<K> {
    /// Read and forward at most `most` frames of one attachment; return how many there were.
    ///
    /// No frame is begun once `most_bytes` have been read.
    pub fn egress_batch(&mut self, slot: Slot, most: usize, most_bytes: usize) -> usize {
        let Some(port) = self.place.port(slot).cloned() else { return 0 };
        let Some(mut space) = self.egress.take() else { return 0 };
        let reads = self.drain(slot, &port, &mut space, most, most_bytes.min(BATCH_BYTES));
        self.egress = Some(space);
        reads
    }

    fn drain(
        &mut self,
        slot: Slot,
        port: &Arc<Port>,
        space: &mut EgressSpace,
        most: usize,
        most_bytes: usize,
    ) -> usize {
        let source = Origin::Port(slot);
        let (mut at, mut reads, mut read_bytes) = (0, 0, 0);
        while reads < most && read_bytes < most_bytes {
            let size = match self.kernel.read(port.fd, &mut space.buffer[at + FRAME_AT..at + HEADER + MAX_PACKET_BYTES])
            {
                Ok(size) => size,
                Err(EAGAIN) => break,
                Err(EINTR) => continue,
                Err(errno) => {
                    // EBADFD: the device is gone with its namespace (tun_chr_read_iter).
                    if !port.lost.swap(true, Relaxed) {
                        self.slow_path
                            .push(Exception::AttachmentLost { port: Party { slot, serial: port.serial }, errno });
                    }
                    break;
                }
            };
            reads += 1;
            read_bytes += size;
            let frame = read_frame(&space.buffer, at, size);
            let tally = self.tally(source);
            tally.received_frames += 1;
            tally.received_packets += frame.as_ref().map_or(1, |frame| frame.packets);
            tally.received_bytes += size.saturating_sub(VNET_BYTES) as u64;
            if self.sabotage.load(Relaxed) && self.sabotage.swap(false, Relaxed) {
                panic!("asked for by a test");
            }
            let Some(frame) = frame else {
                self.tally(source).drop(DropReason::Malformed, 1);
                continue;
            };
            let way = self.way(frame.header.addresses, source);
            at = self.forward_out(slot, port, space, &frame, way);
        }
        self.flush(slot, space);
        self.moved_bytes += read_bytes as u64;
        reads
    }

    /// Send one frame on its way; return where the next may be read.
    fn forward_out(&mut self, slot: Slot, port: &Port, space: &mut EgressSpace, frame: &Frame, way: Way) -> usize {
        let source = Origin::Port(slot);
        let (at, packet_at) = (frame.at, frame.at + HEADER);
        let packet_bytes = frame.end - packet_at;
        let wire_bytes = match &frame.shape {
            None => packet_bytes,
            Some(shape) => packet_bytes.min(shape.header_bytes + usize::from(frame.vnet.gso_size)),
        };
        let (limit_bytes, to_node, peer) = match way {
            Way::Drop(reason) => {
                self.tally(source).drop(reason, frame.packets);
                return at;
            }
            Way::Reject(reason) => {
                self.refuse(source, &space.buffer[packet_at..frame.end], reason, frame.packets, 0, None);
                return at;
            }
            Way::Local(to) => match self.place.port(to) {
                Some(to) => (to.mtu_bytes, to.is_node, None),
                None => {
                    self.tally(source).drop(DropReason::NoAttachment, frame.packets);
                    return at;
                }
            },
            Way::Tunnel(to) => match self.place.peer(to).cloned() {
                Some(to) => {
                    if wire_bytes > to.mtu_bytes() {
                        to.forget_mtu(self.kernel.now_ns());
                    }
                    (to.mtu_bytes(), false, Some(to))
                }
                None => {
                    self.tally(source).drop(DropReason::NoRoute, frame.packets);
                    return at;
                }
            },
        };
        let hop = !(port.is_node || to_node);
        if let Err(reason) = transit(&frame.header, wire_bytes, limit_bytes, hop) {
            self.refuse(source, &space.buffer[packet_at..frame.end], reason, frame.packets, limit_bytes, None);
            return at;
        }
        if hop {
            decrement_hop_limit(&mut space.buffer[packet_at..]);
        }
        if wire_bytes > limit_bytes {
            self.flush(slot, space); // what came before leaves before
            self.cut_out(source, space, frame, way, limit_bytes);
            return at;
        }
        match (way, peer, &frame.shape) {
            (Way::Local(to), ..) => {
                let whole = [IoSlice::new(&space.buffer[at + FRAME_AT..frame.end])];
                let outcome = self.write(to, &whole, frame.packets, packet_bytes);
                self.settle_out(source, outcome, frame.packets, true);
                at
            }
            (Way::Tunnel(to), Some(peer), Some(shape)) => {
                self.flush(slot, space);
                self.send_super_packet(slot, space, frame, shape, to, &peer);
                0
            }
            (Way::Tunnel(to), Some(peer), None) if peer.known.offload => self.join_run(slot, space, frame, to),
            (Way::Tunnel(to), Some(peer), None) => self.send_plain(slot, space, frame, to, &peer),
            _ => at,
        }
    }

    /// Count the fate of packets received before.
    fn settle_out(&mut self, source: Origin, outcome: Result<(), DropReason>, packets: u64, local: bool) {
        let tally = self.tally(source);
        match outcome {
            Err(reason) => tally.drop(reason, packets),
            Ok(()) if local => tally.delivered_packets += packets,
            Ok(()) => tally.tunnelled_packets += packets,
        }
    }

    // Super-packets

    fn send_super_packet(
        &mut self,
        slot: Slot,
        space: &mut EgressSpace,
        frame: &Frame,
        shape: &Shape,
        to: Slot,
        peer: &Arc<Peer>,
    ) {
        let EgressSpace { buffer, splitter, .. } = space;
        let packet = &buffer[frame.at + HEADER..frame.end];
        let payload_bytes = packet.len() - shape.header_bytes;
        let epoch = peer.known.offload.then_some(self.place.routes.epoch);
        let mut start = 0;
        loop {
            let cut = splitter.cut(packet, &frame.header, &frame.vnet, shape, epoch, start);
            let mut pieces = Pieces::new();
            let datagrams = match splitter.flat(&cut) {
                Some(bytes) => Datagrams::Flat(bytes),
                None => {
                    splitter.pieces(&cut, packet, &mut pieces);
                    Datagrams::Gathered(&pieces)
                }
            };
            let train = Train { datagrams, step: cut.row_bytes, packets: cut.packets, bytes: cut.bytes };
            self.send_counted(slot, to, peer, &train, packet);
            start = cut.end;
            if start >= payload_bytes {
                return;
            }
        }
    }

    /// Send a train and count its fate; `packet` is what an ICMP error about it would quote.
    fn send_counted(&mut self, slot: Slot, to: Slot, peer: &Peer, train: &Train, packet: &[u8]) {
        let encap_bytes = if peer.known.offload { HEADER } else { geneve::BASE_BYTES };
        let (sent, failure) = self.send_train(to, peer, train);
        let source = Origin::Port(slot);
        self.tally(source).tunnelled_packets += sent as u64;
        let tally = self.tally(Origin::Peer(to));
        tally.sent_packets += sent as u64;
        tally.sent_bytes += match failure {
            None => train.bytes - sent * encap_bytes,
            Some(_) => sent * (train.step - encap_bytes),
        } as u64;
        let lost = (train.packets - sent) as u64;
        match failure {
            None => {}
            Some(DropReason::TooBig) => {
                // The path has become smaller than we knew.
                let path = Some(Party { slot: to, serial: peer.serial });
                self.refuse(source, packet, DropReason::TooBig, lost, peer.mtu_bytes(), path);
            }
            Some(reason) => self.tally(source).drop(reason, lost),
        }
    }

    // Single packets

    /// Send one packet as plain Geneve, its checksum finished, to a peer that does not know our option.
    fn send_plain(&mut self, slot: Slot, space: &mut EgressSpace, frame: &Frame, to: Slot, peer: &Arc<Peer>) -> usize {
        let packet_at = frame.at + HEADER;
        if let Some((start, offset)) = frame.partial()
            && !finish_checksum(&mut space.buffer[packet_at..frame.end], start, offset)
        {
            self.tally(Origin::Port(slot)).drop(DropReason::Malformed, 1);
            return frame.at;
        }
        let start = packet_at - geneve::BASE_BYTES;
        let header = geneve::encode_plain(self.settings.vni, frame.header.version);
        space.buffer[start..packet_at].copy_from_slice(&header);
        let datagram = &space.buffer[start..frame.end];
        let train =
            Train { datagrams: Datagrams::Flat(datagram), step: datagram.len(), packets: 1, bytes: datagram.len() };
        let packet = &space.buffer[packet_at..frame.end];
        self.send_counted(slot, to, peer, &train, packet);
        frame.at
    }

    /// Write the Geneve header before the packet and make it the run's next datagram, or a new run's first.
    fn join_run(&mut self, slot: Slot, space: &mut EgressSpace, frame: &Frame, to: Slot) -> usize {
        let (at, end) = (frame.at, frame.end);
        let (mut flags, mut csum_offset, mut csum_start) = (0, 0, 0);
        if let Some((start, offset)) = frame.partial() {
            let field = usize::from(start) + usize::from(offset);
            if usize::from(start) < frame.header.header_bytes || offset > 0xFF || field + 2 > end - at - HEADER {
                self.tally(Origin::Port(slot)).drop(DropReason::Malformed, 1);
                return at;
            }
            (flags, csum_offset, csum_start) = (geneve::PARTIAL_CHECKSUM, offset as u8, start);
        }
        if let Some(run) = space.runs.in_the_way(to, end - at) {
            self.send_run(slot, space, run);
        }
        let (vni, epoch) = (self.settings.vni, self.place.routes.epoch);
        let header = geneve::encode(vni, frame.header.version, flags, csum_offset, csum_start, 0, epoch);
        space.buffer[at..at + HEADER].copy_from_slice(&header);
        if let Some(run) = space.runs.add(to, at..end) {
            self.send_run(slot, space, run);
        }
        if end > LAST_START {
            self.flush(slot, space);
        }
        if space.runs.is_empty() { 0 } else { end }
    }

    /// Send every run of single packets there is.
    fn flush(&mut self, slot: Slot, space: &mut EgressSpace) {
        while let Some(run) = space.runs.close() {
            self.send_run(slot, space, run);
        }
    }

    fn send_run(&mut self, slot: Slot, space: &EgressSpace, run: usize) {
        let run = space.runs.closed(run);
        let Some(peer) = self.place.peer(run.peer).cloned() else { return };
        let pieces = run.pieces(&space.buffer);
        let datagrams = Datagrams::Scattered(&pieces);
        let train = Train { datagrams, step: run.step, packets: run.count, bytes: run.bytes };
        self.send_counted(slot, run.peer, &peer, &train, &run.first(&space.buffer)[HEADER..]);
    }

    // Packets larger than the way, which IPv4 lets a router cut

    fn cut_out(&mut self, source: Origin, space: &mut EgressSpace, frame: &Frame, way: Way, mtu_bytes: usize) {
        let EgressSpace { buffer, splitter, .. } = space;
        let packet = &buffer[frame.at + HEADER..frame.end];
        let mut outcome = Ok(());
        match &frame.shape {
            None => outcome = self.forward_in_fragments(packet, frame.partial(), way, mtu_bytes),
            Some(shape) => {
                let payload_bytes = packet.len() - shape.header_bytes;
                let mut start = 0;
                loop {
                    let cut = splitter.cut(packet, &frame.header, &frame.vnet, shape, None, start);
                    for datagram in splitter.flat(&cut).unwrap_or(&[]).chunks(cut.row_bytes) {
                        let inner = &datagram[geneve::BASE_BYTES..];
                        if let Err(reason) = self.forward_in_fragments(inner, None, way, mtu_bytes) {
                            outcome = Err(reason);
                        }
                    }
                    start = cut.end;
                    if start >= payload_bytes {
                        break;
                    }
                }
            }
        }
        self.settle_out(source, outcome, frame.packets, matches!(way, Way::Local(_)));
    }
}

/// Check what was read; None when it is no packet, or a super-packet whose virtio header does not fit it.
fn read_frame(buffer: &[u8], at: usize, size: usize) -> Option<Frame> {
    let end = at + FRAME_AT + size;
    let packet = buffer.get(at + HEADER..end).filter(|packet| !packet.is_empty())?;
    let header = parse_ip(packet)?;
    let vnet = VnetHeader::read(buffer[at + FRAME_AT..at + HEADER].first_chunk()?);
    let mut frame = Frame { at, end, header, vnet, shape: None, packets: 1 };
    if vnet.gso_type != GSO_NONE {
        let shape = Shape::of_super_packet(packet, &header, &vnet)?;
        frame.packets = shape.packets_in(packet.len(), vnet.gso_size);
        frame.shape = Some(shape);
    }
    Some(frame)
}

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
use crate::fates::Handed;
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
    /// How long one of its packets is on the wire.
    fn wire_bytes(&self) -> usize {
        let packet_bytes = self.end - self.at - HEADER;
        match &self.shape {
            None => packet_bytes,
            Some(shape) => packet_bytes.min(shape.header_bytes + usize::from(self.vnet.gso_size)),
        }
    }

    /// Whose it is, and where it goes; `aged` once a hop was taken from it.
    fn handed<'a>(&self, source: Slot, meant: Way, buffer: &'a [u8], aged: bool, mark: usize) -> Handed<'a> {
        let (source, packet) = (Origin::Port(source), &buffer[self.at + HEADER..self.end]);
        Handed { source, meant, packet, aged, packet_bytes: self.wire_bytes(), packets: self.packets, mark }
    }

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
        self.end_batch(reads);
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
            self.tick();
            let frame = read_frame(&space.buffer, at, size);
            let tally = self.tally(source);
            tally.received_frames += 1;
            tally.received_packets += frame.as_ref().map_or(1, |frame| frame.packets);
            tally.received_bytes += size.saturating_sub(VNET_BYTES) as u64;
            if self.sabotage.load(Relaxed) && self.sabotage.swap(false, Relaxed) {
                panic!("asked for by a test");
            }
            let Some(frame) = frame else {
                let packet = space.buffer.get(at + HEADER..at + FRAME_AT + size).unwrap_or(&[]);
                let (meant, packet_bytes, mark) = (Way::Drop(DropReason::Malformed), packet.len(), self.mark());
                let handed = Handed { source, meant, packet, aged: false, packet_bytes, packets: 1, mark };
                self.drop(&handed, DropReason::Malformed);
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
        let (at, packet_at, wire_bytes) = (frame.at, frame.at + HEADER, frame.wire_bytes());
        let handed = frame.handed(slot, way, &space.buffer, false, self.mark());
        let (limit_bytes, to_node, peer) = match way {
            Way::Drop(reason) => {
                self.drop(&handed, reason);
                return at;
            }
            Way::Reject(reason) => {
                self.refuse(&handed, reason, 0);
                return at;
            }
            Way::Local(to) => match self.place.port(to) {
                Some(to) => (to.mtu_bytes, to.is_node, None),
                None => {
                    self.drop(&handed, DropReason::NoAttachment);
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
                    self.drop(&handed, DropReason::NoRoute);
                    return at;
                }
            },
        };
        let hop = !(port.is_node || to_node);
        if let Err(reason) = transit(&frame.header, wire_bytes, limit_bytes, hop) {
            self.refuse(&handed, reason, limit_bytes);
            return at;
        }
        if hop {
            decrement_hop_limit(&mut space.buffer[packet_at..]);
        }
        if wire_bytes > limit_bytes {
            self.flush(slot, space); // what came before leaves before
            self.cut_out(slot, space, frame, way, limit_bytes, hop);
            return at;
        }
        match (way, peer, &frame.shape) {
            (Way::Local(to), ..) => {
                let whole = [IoSlice::new(&space.buffer[at + FRAME_AT..frame.end])];
                let outcome = self.write(to, &whole, frame.packets, frame.end - packet_at);
                let handed = frame.handed(slot, way, &space.buffer, hop, self.mark());
                self.settle(&handed, outcome);
                if outcome.is_ok() {
                    self.see_after(handed.source, way, frame.packets, &[handed.packet]);
                }
                at
            }
            (Way::Tunnel(to), Some(peer), Some(shape)) => {
                self.flush(slot, space);
                self.see_before(&frame.handed(slot, way, &space.buffer, hop, self.mark()), way);
                self.send_super_packet(slot, space, frame, shape, to, &peer);
                0
            }
            (Way::Tunnel(to), Some(peer), None) if peer.known.offload => self.join_run(slot, space, frame, to, hop),
            (Way::Tunnel(to), Some(peer), None) => self.send_plain(slot, space, frame, to, &peer, hop),
            _ => at,
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

    // Single packets

    /// Send one packet as plain Geneve, its checksum finished, to a peer that does not know our option.
    fn send_plain(
        &mut self,
        slot: Slot,
        space: &mut EgressSpace,
        frame: &Frame,
        to: Slot,
        peer: &Arc<Peer>,
        hop: bool,
    ) -> usize {
        let packet_at = frame.at + HEADER;
        let handed = frame.handed(slot, Way::Tunnel(to), &space.buffer, hop, self.mark());
        if let Some((start, offset)) = frame.partial()
            && checksum_field(handed.packet, start, offset).is_none()
        {
            self.drop(&handed, DropReason::Malformed);
            return frame.at;
        }
        self.see_before(&handed, handed.meant);
        if let Some((start, offset)) = frame.partial() {
            finish_checksum(&mut space.buffer[packet_at..frame.end], start, offset);
        }
        let start = packet_at - geneve::BASE_BYTES;
        let header = geneve::encode_plain(self.settings.vni, frame.header.version);
        space.buffer[start..packet_at].copy_from_slice(&header);
        let datagram = &space.buffer[start..frame.end];
        let train =
            Train { datagrams: Datagrams::Flat(datagram), step: datagram.len(), packets: 1, bytes: datagram.len() };
        self.send_counted(slot, to, peer, &train, &space.buffer[packet_at..frame.end]);
        frame.at
    }

    /// Write the Geneve header before the packet and make it the run's next datagram, or a new run's first.
    fn join_run(&mut self, slot: Slot, space: &mut EgressSpace, frame: &Frame, to: Slot, hop: bool) -> usize {
        let (at, end) = (frame.at, frame.end);
        let (mut flags, mut csum_offset, mut csum_start) = (0, 0, 0);
        if let Some((start, offset)) = frame.partial() {
            let field = usize::from(start) + usize::from(offset);
            if usize::from(start) < frame.header.header_bytes || offset > 0xFF || field + 2 > end - at - HEADER {
                self.drop(&frame.handed(slot, Way::Tunnel(to), &space.buffer, hop, self.mark()), DropReason::Malformed);
                return at;
            }
            (flags, csum_offset, csum_start) = (geneve::PARTIAL_CHECKSUM, offset as u8, start);
        }
        if let Some(run) = space.runs.in_the_way(to, end - at) {
            self.send_run(slot, space, run);
        }
        if self.watching.is_some() {
            let handed = frame.handed(slot, Way::Tunnel(to), &space.buffer, hop, self.mark());
            self.see_before(&handed, handed.meant);
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

    fn cut_out(&mut self, slot: Slot, space: &mut EgressSpace, frame: &Frame, way: Way, mtu_bytes: usize, hop: bool) {
        let EgressSpace { buffer, splitter, .. } = space;
        let handed = frame.handed(slot, way, buffer, hop, self.mark());
        let (source, packet) = (handed.source, handed.packet);
        let mut outcome = Ok(());
        match &frame.shape {
            None => outcome = self.forward_in_fragments(source, packet, frame.partial(), way, mtu_bytes),
            Some(shape) => {
                let payload_bytes = packet.len() - shape.header_bytes;
                let mut start = 0;
                loop {
                    let cut = splitter.cut(packet, &frame.header, &frame.vnet, shape, None, start);
                    for datagram in splitter.flat(&cut).unwrap_or(&[]).chunks(cut.row_bytes) {
                        let inner = &datagram[geneve::BASE_BYTES..];
                        if let Err(reason) = self.forward_in_fragments(source, inner, None, way, mtu_bytes) {
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
        self.settle(&handed, outcome);
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

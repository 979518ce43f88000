//! What becomes of packets: it is counted, what is dropped is remembered with its flow, and taps see it.

use crate::drops::{Cause, Dropped};
use crate::exceptions::{Exception, Party};
use crate::forwarder::Forwarder;
use crate::kernel::Kernel;
use crate::model::{DropReason, Named, Origin, Way};
use crate::taps::{Glimpse, Side};
use crate::wire::flow::flow_of;
use crate::wire::packet::return_hop;

/// Upper bounds of the classes that batches are counted in, by their reads; router/engine/interface.py has the same.
pub const BATCH_BOUNDS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];

/// How much of a header can have changed since it came.
const HEAD_BYTES: usize = 12;

/// What a source handed over: a frame's packet, which may be a super-packet, or one that came in a datagram.
#[derive(Clone, Copy)]
pub struct Handed<'a> {
    pub source: Origin,
    /// Where it is to go.
    pub meant: Way,
    /// From the IP header on.
    pub packet: &'a [u8],
    /// Whether a hop was taken from it since it came.
    pub aged: bool,
    /// Of one of its packets on the wire.
    pub packet_bytes: usize,
    pub packets: u64,
    /// Where its sighting belongs among those in hand: before what became of it.
    pub mark: usize,
}

impl<K: Kernel> Forwarder<K> {
    /// Count packets as dropped.
    pub fn drop(&mut self, handed: &Handed, reason: DropReason) {
        self.tally(handed.source).drop(reason, handed.packets);
        self.record(handed, Way::Drop(reason), 0);
    }

    /// Count packets as dropped, and let the sender be told about the one at hand.
    pub fn refuse(&mut self, handed: &Handed, reason: DropReason, mtu_bytes: usize) {
        self.tally(handed.source).drop(reason, handed.packets);
        self.record(handed, Way::Reject(reason), mtu_bytes);
        self.tell(handed.source, handed.packet, reason, mtu_bytes, None);
    }

    /// Count the fate of packets that were received before.
    pub fn settle(&mut self, handed: &Handed, outcome: Result<(), DropReason>) {
        let tally = self.tally(handed.source);
        match outcome {
            Err(reason) => return self.drop(handed, reason),
            Ok(()) if matches!(handed.meant, Way::Local(_)) => tally.delivered_packets += handed.packets,
            Ok(()) => tally.tunnelled_packets += handed.packets,
        }
        self.see_before(handed, handed.meant);
    }

    /// Remember packets that were counted as dropped, and let taps see them; return the mark of what comes next.
    pub fn record(&mut self, handed: &Handed, fate: Way, limit_bytes: usize) -> usize {
        let Some(source) = self.place.named(handed.source) else { return handed.mark };
        if let Way::Drop(reason) | Way::Reject(reason) = fate {
            let limit_bytes = if reason == DropReason::TooBig { limit_bytes } else { 0 };
            let cause = Cause { source, reason, flow: flow_of(handed.packet) };
            self.note(cause, handed.packets, handed.packet_bytes, limit_bytes, None);
        }
        self.see_before(handed, fate)
    }

    /// Do so with a packet that was not sent though it was to be; `path` is to whom it was too big, and what that carries.
    pub fn record_unsent(
        &mut self,
        origin: Origin,
        meant: Way,
        fate: Way,
        pieces: &[&[u8]],
        path: Option<(Party, usize)>,
    ) {
        let (Some(source), [headers, rest @ ..]) = (self.place.named(origin), pieces) else { return };
        if let Way::Drop(reason) | Way::Reject(reason) = fate {
            let cause = Cause { source, reason, flow: flow_of(headers) };
            let packet_bytes = pieces.iter().map(|piece| piece.len()).sum();
            self.note(cause, 1, packet_bytes, path.map_or(0, |(_, bytes)| bytes), path.map(|(peer, _)| peer));
        }
        if self.watching.is_none() {
            return;
        }
        let glimpse = Glimpse { side: Side::Before, origin, source: Some(source), meant, fate, packets: 1 };
        let Some(&(mut head)) = headers.first_chunk::<HEAD_BYTES>() else { return };
        if !self.place.is_node(origin) {
            return_hop(&mut head);
        }
        let payload = rest.first().copied().unwrap_or_default();
        self.look(&glimpse, &[&head, &headers[HEAD_BYTES..], payload], usize::MAX);
    }

    /// Count a datagram as dropped whose header could not be read.
    pub fn drop_undecoded(&mut self, source: Origin, datagram: &[u8], reason: DropReason) {
        self.tally(source).drop(reason, 1);
        let Some(named) = self.place.named(source) else { return };
        self.note(Cause { source: named, reason, flow: None }, 1, datagram.len(), 0, None);
        let fate = Way::Drop(reason);
        let glimpse =
            Glimpse { side: Side::Before, origin: source, source: Some(named), meant: fate, fate, packets: 1 };
        self.look(&glimpse, &[datagram], usize::MAX);
    }

    /// Remember what was dropped: each direction for itself.
    pub fn note(&mut self, cause: Cause, packets: u64, packet_bytes: usize, limit_bytes: usize, path: Option<Party>) {
        let now_ns = self.kernel.wall_ns();
        let inward = matches!(cause.source, Named::Endpoint(_));
        let dropped = Dropped { cause, packets, first_ns: now_ns, last_ns: now_ns, packet_bytes, limit_bytes, path };
        self.drops[usize::from(inward)].note(dropped);
    }

    /// Let the slow path tell a sender about a packet that was dropped, if the rate allows.
    pub fn tell(&mut self, source: Origin, packet: &[u8], reason: DropReason, mtu_bytes: usize, path: Option<Party>) {
        let (per_s, now_ns) = (self.settings.icmp_errors_per_s, self.kernel.now_ns());
        let allowed = self.account(source).is_some_and(|account| account.may_tell(per_s, now_ns));
        let told = allowed && {
            let serial = self.account(source).map_or(0, |account| account.serial);
            let packet = packet.to_vec();
            let thread = self.thread;
            self.slow_path.push(Exception::Refused { thread, source, serial, reason, packet, mtu_bytes, path })
        };
        self.suppressed += u64::from(!told);
    }

    // Taps

    /// Let what is seen next have a time of its own.
    pub fn tick(&mut self) {
        if let Some(watching) = &mut self.watching {
            watching.tick();
        }
    }

    /// Where what is seen from now on will stand.
    pub fn mark(&self) -> usize {
        self.watching.as_ref().map_or(0, |watching| watching.mark())
    }

    /// Let taps see a packet as it came; return where the next one's sighting belongs.
    pub fn see_before(&mut self, handed: &Handed, fate: Way) -> usize {
        if self.watching.is_none() {
            return 0;
        }
        let Handed { source: origin, meant, packets, .. } = *handed;
        let glimpse = Glimpse { side: Side::Before, origin, source: self.place.named(origin), meant, fate, packets };
        match handed.packet.first_chunk::<HEAD_BYTES>() {
            Some(head) if handed.aged => {
                let mut head = *head;
                return_hop(&mut head);
                self.look(&glimpse, &[&head, &handed.packet[HEAD_BYTES..]], handed.mark)
            }
            _ => self.look(&glimpse, &[handed.packet], handed.mark),
        }
    }

    /// Let taps see a packet as it was handed on.
    pub fn see_after(&mut self, origin: Origin, way: Way, packets: u64, pieces: &[&[u8]]) {
        if self.watching.is_some() {
            let source = self.place.named(origin);
            let glimpse = Glimpse { side: Side::After, origin, source, meant: way, fate: way, packets };
            self.look(&glimpse, pieces, usize::MAX);
        }
    }

    /// Let taps see it at its place in the order; return the next place.
    pub fn look(&mut self, glimpse: &Glimpse, pieces: &[&[u8]], mark: usize) -> usize {
        let Some(watching) = &mut self.watching else { return 0 };
        let kernel = &mut self.kernel;
        watching.look(glimpse, pieces, &self.place, mark, || kernel.wall_ns())
    }

    /// Count a batch, and hand over what was seen in it.
    pub fn end_batch(&mut self, reads: usize) {
        if reads > 0 {
            let class = BATCH_BOUNDS.iter().position(|&most| reads <= most).unwrap_or(BATCH_BOUNDS.len() - 1);
            self.batches[class] += 1;
        }
        self.hand_over();
    }

    pub fn hand_over(&mut self) {
        if let Some(watching) = &mut self.watching {
            watching.hand_over();
        }
    }
}

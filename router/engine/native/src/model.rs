//! The words of the engine: what router/model.py calls so.

use std::net::SocketAddr;

macro_rules! drop_reasons {
    ($($variant:ident $name:literal)*) => {
        /// Why a packet went no further; `NAMES` are those of router/model.py.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(usize)]
        pub enum DropReason { $($variant),* }

        impl DropReason {
            pub const ALL: &'static [DropReason] = &[$(DropReason::$variant),*];
            pub const NAMES: &'static [&'static str] = &[$($name),*];
        }
    };
}

drop_reasons! {
    NoRoute "no_route"
    NoAttachment "no_attachment"
    EgressDisabled "egress_disabled"
    NotRoutable "not_routable"
    TtlExpired "ttl_expired"
    TooBig "too_big"
    Malformed "malformed"
    SpoofedSource "spoofed_source"
    UnknownPeer "unknown_peer"
    BadEncapsulation "bad_encapsulation"
    WrongNetwork "wrong_network"
    StaleEpoch "stale_epoch"
    PeerDown "peer_down"
    WrongNode "wrong_node"
    AttachmentDown "attachment_down"
    UnderlayBusy "underlay_busy"
    RateLimited "rate_limited"
    UnderlayError "underlay_error"
    EngineFailed "engine_failed"
}

const REASONS: usize = DropReason::ALL.len();

/// Packets of one source by their fate: received = delivered + tunnelled + dropped, between batches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub received_packets: u64,
    pub received_bytes: u64,
    pub received_frames: u64,
    pub delivered_packets: u64,
    pub tunnelled_packets: u64,
    pub sent_packets: u64,
    pub sent_bytes: u64,
    pub icmp_errors: u64,
    pub control_packets: u64,
    pub dropped: [u64; REASONS],
}

impl Tally {
    pub fn drop(&mut self, reason: DropReason, packets: u64) {
        self.dropped[reason as usize] += packets;
    }

    pub fn settled(&self) -> u64 {
        self.delivered_packets + self.tunnelled_packets + self.dropped.iter().sum::<u64>()
    }

    /// Count what was received and has no fate: it was in the hands of a batch that failed. Return how many.
    pub fn settle_failure(&mut self) -> u64 {
        let lost = self.received_packets.saturating_sub(self.settled());
        self.drop(DropReason::EngineFailed, lost);
        // A fate counted before its packet was: the other way round, for packets counted one by one as they are joined.
        self.received_packets = self.received_packets.max(self.settled());
        lost
    }

    pub fn add(&mut self, other: &Tally) {
        self.received_packets += other.received_packets;
        self.received_bytes += other.received_bytes;
        self.received_frames += other.received_frames;
        self.delivered_packets += other.delivered_packets;
        self.tunnelled_packets += other.tunnelled_packets;
        self.sent_packets += other.sent_packets;
        self.sent_bytes += other.sent_bytes;
        self.icmp_errors += other.icmp_errors;
        self.control_packets += other.control_packets;
        for (mine, its) in self.dropped.iter_mut().zip(other.dropped) {
            *mine += its;
        }
    }
}

/// How fast packets may go one way; both in bytes of inner packets.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    pub bytes_per_s: u64,
    pub burst_bytes: u64,
}

/// Where an attachment or a peer stands in the engine's lists; given again only when nobody can mean the former.
pub type Slot = usize;

/// Who handed us a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    Port(Slot),
    Peer(Slot),
    /// The router itself.
    Router,
}

/// Who handed us a packet, or got it, by a name that means nobody else later.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Named {
    /// An attachment, by the number that its key has.
    Port(u64),
    /// A peer, or a stranger.
    Endpoint(SocketAddr),
}

/// What becomes of a packet, with its target looked up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    Local(Slot),
    Tunnel(Slot),
    /// Dropped, and its sender is told by an ICMP error.
    Reject(DropReason),
    Drop(DropReason),
}

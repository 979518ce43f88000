//! What becomes of a packet: the same decisions as router/decide.py, on the same facts. Pure.
//!
//!     addresses → does the source hold its address? → who holds the destination? → Way (the same for a whole flow)
//!     header    → does it live long enough, is it small enough for the way?

use std::net::SocketAddr;
use std::sync::Arc;

use crate::model::{DropReason, Named, Origin, Slot, Way};
use crate::view::{Holders, Holding, Leads, Peer, Port, Routes};
use crate::wire::packet::{Addresses, IpHeader};

/// Everything a decision rests on.
#[derive(Clone, Default)]
pub struct Place {
    pub routes: Arc<Routes>,
    pub holders: Arc<Holders>,
    pub ports: Vec<Option<Arc<Port>>>,
    /// Shared: there may be a hundred thousand.
    pub peers: Arc<Vec<Option<Arc<Peer>>>>,
}

impl Place {
    pub fn port(&self, slot: Slot) -> Option<&Arc<Port>> {
        self.ports.get(slot).and_then(Option::as_ref)
    }

    pub fn peer(&self, slot: Slot) -> Option<&Arc<Peer>> {
        self.peers.get(slot).and_then(Option::as_ref)
    }

    /// Return what tells the holder of a slot from others that had it.
    pub fn serial(&self, origin: Origin) -> Option<u64> {
        match origin {
            Origin::Port(slot) => self.port(slot).map(|port| port.serial),
            Origin::Peer(slot) => self.peer(slot).map(|peer| peer.serial),
            Origin::Router => None,
        }
    }

    /// Return a name that stays; None for the router itself, and for who is not there.
    pub fn named(&self, origin: Origin) -> Option<Named> {
        match origin {
            Origin::Port(slot) => self.port(slot).map(|port| Named::Port(port.number)),
            Origin::Peer(slot) => self.peer(slot).map(|peer| Named::Endpoint(peer.endpoint)),
            Origin::Router => None,
        }
    }

    /// Return the slots of peers that are another's or nobody's in `next`.
    pub fn peers_leaving(&self, next: &Place) -> Vec<Slot> {
        let serial = |peer: Option<&Arc<Peer>>| peer.map(|peer| peer.serial);
        let leaves = |slot: &Slot| self.peer(*slot).is_some() && serial(self.peer(*slot)) != serial(next.peer(*slot));
        if Arc::ptr_eq(&self.peers, &next.peers) { Vec::new() } else { (0..self.peers.len()).filter(leaves).collect() }
    }

    /// Return the peer that sent from there, or None for a stranger.
    ///
    /// A peer that speaks plain Geneve may use any source port (RFC 8926 section 3.3), as long as its host is its own.
    pub fn sender(&self, from: &SocketAddr) -> Option<Slot> {
        if let Some(&slot) = self.routes.by_endpoint.get(from) {
            return Some(slot);
        }
        let slot = self.routes.by_host.get(&from.ip()).copied().flatten()?;
        self.peer(slot).filter(|peer| !peer.known.offload).map(|_| slot)
    }

    /// Decide by source and destination.
    pub fn way(&self, addresses: &Addresses, origin: Origin) -> Way {
        let (src, dst) = match *addresses {
            Addresses::V4 { src, dst } => (Holding::V4(src), Holding::V4(dst)),
            Addresses::V6 { src, dst } => (Holding::V6(src), Holding::V6(dst)),
        };
        let leads_to = self.routes.lookup(dst);
        if leads_to == Leads::Never {
            return Way::Drop(DropReason::NotRoutable);
        }
        let own: &[Holding] = match origin {
            Origin::Port(slot) => self.port(slot).map_or(&[], |port| &port.addresses),
            Origin::Peer(_) => &[],
            Origin::Router => &self.routes.node_addresses,
        };
        let from_peer = matches!(origin, Origin::Peer(_));
        let from_node = self.is_node(origin);
        let holds_source = match origin {
            Origin::Peer(slot) => self.routes.lookup(src) == Leads::Peer(slot),
            // The node also sends for the outside world, whose answers to Pods come through it.
            _ => own.contains(&src) || (from_node && self.routes.index(src) == 0),
        };
        if !holds_source {
            return Way::Drop(DropReason::SpoofedSource);
        }
        if let Some(&holder) = self.holders.by_address.get(&dst) {
            return Way::Local(holder);
        }
        match leads_to {
            Leads::Peer(_) if from_peer => Way::Reject(DropReason::WrongNode),
            // The peer would take it for an intruder: its source lies in no subnet of ours.
            Leads::Peer(_) if from_node && !own.contains(&src) => Way::Drop(DropReason::SpoofedSource),
            Leads::Peer(slot) if self.peer(slot).is_some_and(|peer| !peer.known.up) => {
                Way::Reject(DropReason::PeerDown)
            }
            Leads::Peer(slot) => Way::Tunnel(slot),
            Leads::OwnSubnet => Way::Reject(DropReason::NoAttachment),
            Leads::Nowhere if !from_peer && !from_node => match self.holders.node {
                Some(node) if self.routes.egress => Way::Local(node),
                _ => Way::Reject(DropReason::EgressDisabled),
            },
            _ => Way::Reject(DropReason::NoRoute),
        }
    }

    /// Tell the node's own attachment, which with its router counts as one hop.
    pub fn is_node(&self, origin: Origin) -> bool {
        matches!(origin, Origin::Port(slot) if self.port(slot).is_some_and(|port| port.is_node))
    }
}

/// Refuse a packet that may go no further: hop limit used up, or too big for the way and not to be fragmented.
///
/// `packet_bytes` is the size on the wire: of one segment, for a super-packet. `hop` is false where node and router
/// count as one.
pub fn transit(header: &IpHeader, packet_bytes: usize, limit_bytes: usize, hop: bool) -> Result<(), DropReason> {
    if hop && header.hop_limit <= 1 {
        return Err(DropReason::TtlExpired);
    }
    if packet_bytes > limit_bytes && !header.may_fragment {
        return Err(DropReason::TooBig);
    }
    Ok(())
}

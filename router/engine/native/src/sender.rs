//! Send trains of datagrams to a peer: one UDP_SEGMENT send each, or what the kernel lets us do instead
//! (router/engine/sender.py).

use std::io::IoSlice;
use std::sync::atomic::Ordering::Relaxed;

use crate::exceptions::{Exception, Party};
use crate::forwarder::Forwarder;
use crate::kernel::*;
use crate::model::{DropReason, Slot};
use crate::view::Peer;

/// Longest wait for room in the socket: back-pressure fills the TUN's ring, where the sender's stack sees it.
const BUSY_WAIT_MS: i32 = 1;

/// One send: `packets` datagrams of `step` bytes, the last perhaps shorter, `bytes` in all.
pub struct Train<'a> {
    pub datagrams: Datagrams<'a>,
    pub step: usize,
    pub packets: usize,
    pub bytes: usize,
}

pub enum Datagrams<'a> {
    /// Side by side in one slice.
    Flat(&'a [u8]),
    /// Some side by side in each slice.
    Scattered(&'a [IoSlice<'a>]),
    /// A header and a payload each.
    Gathered(&'a [IoSlice<'a>]),
}

impl<K: Kernel> Forwarder<K> {
    /// Send a train; return how many of its datagrams the kernel took, and why not the rest.
    pub fn send_train(&mut self, slot: Slot, peer: &Peer, train: &Train) -> (usize, Option<DropReason>) {
        if train.packets == 1 || !self.settings.udp_segment || !peer.path.segmenting.load(Relaxed) {
            return self.send_each(slot, peer, train);
        }
        let whole;
        let pieces = match train.datagrams {
            Datagrams::Flat(bytes) => {
                whole = [IoSlice::new(bytes)];
                &whole[..]
            }
            Datagrams::Scattered(pieces) | Datagrams::Gathered(pieces) => pieces,
        };
        match self.send_patiently(slot, peer, pieces, train.step as u16) {
            Ok(()) => (train.packets, None),
            Err(Failure::Segmenting(errno)) => {
                // The interface towards the peer cannot finish the checksums of a train (udp_send_skb, net/ipv4/udp.c).
                peer.path.segmenting.store(false, Relaxed);
                let peer_ = Some(Party { slot, serial: peer.serial });
                self.slow_path.push(Exception::OffloadFailed { feature: "udp_segment", peer: peer_, errno });
                self.send_each(slot, peer, train)
            }
            Err(Failure::Dropped(reason)) => (0, Some(reason)),
        }
    }

    fn send_each(&mut self, slot: Slot, peer: &Peer, train: &Train) -> (usize, Option<DropReason>) {
        let mut sent = 0;
        let mut outcome = None;
        let mut settle = |result: Result<(), DropReason>| match result {
            Ok(()) => sent += 1,
            Err(reason) => outcome = Some(reason),
        };
        match train.datagrams {
            Datagrams::Flat(bytes) => {
                bytes
                    .chunks(train.step)
                    .for_each(|datagram| settle(self.send_one(slot, peer, &[IoSlice::new(datagram)])));
            }
            Datagrams::Scattered(pieces) => {
                let datagrams = pieces.iter().flat_map(|piece| piece.chunks(train.step));
                datagrams.for_each(|datagram| settle(self.send_one(slot, peer, &[IoSlice::new(datagram)])));
            }
            Datagrams::Gathered(pieces) => {
                pieces.chunks(2).for_each(|datagram| settle(self.send_one(slot, peer, datagram)));
            }
        }
        (sent, outcome)
    }

    /// Send one datagram.
    pub fn send_one(&mut self, slot: Slot, peer: &Peer, datagram: &[IoSlice]) -> Result<(), DropReason> {
        self.send_patiently(slot, peer, datagram, 0).map_err(|failure| match failure {
            Failure::Dropped(reason) => reason,
            Failure::Segmenting(_) => DropReason::UnderlayError,
        })
    }

    fn send_patiently(
        &mut self,
        slot: Slot,
        peer: &Peer,
        pieces: &[IoSlice],
        segment_bytes: u16,
    ) -> Result<(), Failure> {
        loop {
            let errno = match self.kernel.send(&peer.endpoint, pieces, segment_bytes) {
                Ok(()) => return Ok(()),
                Err(errno) => errno,
            };
            return Err(match errno {
                EINTR => continue,
                EAGAIN | ENOBUFS | ENOMEM => {
                    if self.kernel.await_room(BUSY_WAIT_MS) && errno == EAGAIN {
                        continue;
                    }
                    Failure::Dropped(DropReason::UnderlayBusy)
                }
                EIO if segment_bytes > 0 => Failure::Segmenting(errno),
                // EINVAL: a segment larger than the path MTU (udp_send_skb).
                EMSGSIZE | EINVAL if errno == EMSGSIZE || segment_bytes > 0 => {
                    if !peer.path.measuring.swap(true, Relaxed) {
                        self.slow_path.push(Exception::PathTooSmall { peer: Party { slot, serial: peer.serial } });
                    }
                    Failure::Dropped(DropReason::TooBig)
                }
                _ => Failure::Dropped(DropReason::UnderlayError),
            });
        }
    }
}

enum Failure {
    Dropped(DropReason),
    /// The interface takes no trains.
    Segmenting(Errno),
}

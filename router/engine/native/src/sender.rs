//! Send trains of datagrams to a peer: one UDP_SEGMENT send each, or what the kernel lets us do instead
//! (router/engine/sender.py).

use std::io::IoSlice;
use std::sync::atomic::Ordering::Relaxed;

use crate::exceptions::{Exception, Party};
use crate::forwarder::Forwarder;
use crate::kernel::*;
use crate::model::{DropReason, Origin, Slot, Way};
use crate::view::Peer;
use crate::wire::geneve;

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

impl Train<'_> {
    /// Show each datagram, in one piece or two, without its first `skip` bytes.
    pub fn each(&self, skip: usize, mut show: impl FnMut(usize, &[&[u8]])) {
        match self.datagrams {
            Datagrams::Flat(bytes) => {
                bytes.chunks(self.step).enumerate().for_each(|(row, datagram)| show(row, &[&datagram[skip..]]));
            }
            Datagrams::Scattered(pieces) => {
                let datagrams = pieces.iter().flat_map(|piece| piece.chunks(self.step));
                datagrams.enumerate().for_each(|(row, datagram)| show(row, &[&datagram[skip..]]));
            }
            Datagrams::Gathered(pieces) => {
                for (row, pair) in pieces.chunks(2).enumerate() {
                    show(row, &[&pair[0][skip..], pair.get(1).map_or(&[], |payload| payload)]);
                }
            }
        }
    }
}

/// What became of a train.
pub struct Sent {
    /// Which of its datagrams the kernel took, a bit each, the first the lowest; no train has more than there are bits.
    pub which: u128,
    pub count: usize,
    /// Why it did not take the rest.
    pub failure: Option<DropReason>,
}

impl Sent {
    pub fn took(&self, row: usize) -> bool {
        self.which >> row & 1 != 0
    }
}

impl<K: Kernel> Forwarder<K> {
    /// Send a train and count its fate; `packet` is what an ICMP error about it would quote.
    pub fn send_counted(&mut self, slot: Slot, to: Slot, peer: &Peer, train: &Train, packet: &[u8]) {
        let encap_bytes = if peer.known.offload { geneve::HEADER_BYTES } else { geneve::BASE_BYTES };
        let sent = self.send_train(to, peer, train);
        self.tick();
        let (source, way) = (Origin::Port(slot), Way::Tunnel(to));
        self.tally(source).tunnelled_packets += sent.count as u64;
        let tally = self.tally(Origin::Peer(to));
        tally.sent_packets += sent.count as u64;
        tally.sent_bytes += match sent.failure {
            None => train.bytes - sent.count * encap_bytes,
            Some(_) => sent.count * (train.step - encap_bytes),
        } as u64;
        if self.watching.is_some() {
            train.each(encap_bytes, |row, pieces| {
                if sent.took(row) {
                    self.see_after(source, way, 1, pieces);
                }
            });
        }
        let Some(reason) = sent.failure else { return };
        self.tally(source).drop(reason, (train.packets - sent.count) as u64);
        // The path has become smaller than we knew.
        let path = (reason == DropReason::TooBig).then_some(Party { slot: to, serial: peer.serial });
        let fate = if path.is_some() { Way::Reject(reason) } else { Way::Drop(reason) };
        train.each(encap_bytes, |row, pieces| {
            if !sent.took(row) {
                self.record_unsent(source, way, fate, pieces, path.map(|path| (path, peer.mtu_bytes())));
            }
        });
        if path.is_some() {
            self.tell(source, packet, reason, peer.mtu_bytes(), path);
        }
    }

    /// Send a train.
    fn send_train(&mut self, slot: Slot, peer: &Peer, train: &Train) -> Sent {
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
            Ok(()) => Sent { which: u128::MAX, count: train.packets, failure: None },
            Err(Failure::Segmenting(errno)) => {
                // The interface towards the peer cannot finish the checksums of a train (udp_send_skb, net/ipv4/udp.c).
                peer.path.segmenting.store(false, Relaxed);
                let peer_ = Some(Party { slot, serial: peer.serial });
                self.slow_path.push(Exception::OffloadFailed { feature: "udp_segment", peer: peer_, errno });
                self.send_each(slot, peer, train)
            }
            Err(Failure::Dropped(reason)) => Sent { which: 0, count: 0, failure: Some(reason) },
        }
    }

    fn send_each(&mut self, slot: Slot, peer: &Peer, train: &Train) -> Sent {
        let mut sent = Sent { which: 0, count: 0, failure: None };
        let mut row = 0;
        let mut settle = |result: Result<(), DropReason>| {
            match result {
                Ok(()) => {
                    sent.which |= 1 << row;
                    sent.count += 1;
                }
                Err(reason) => sent.failure = Some(reason),
            }
            row += 1;
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
        sent
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

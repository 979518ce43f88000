"""Send trains of datagrams to a peer: one UDP_SEGMENT send each, or what the kernel lets us do instead."""

from __future__ import annotations

import errno
import select
import socket
import struct
import time
from collections.abc import Sequence

from router.engine.interface import Host
from router.engine.ports import Peer
from router.model import DropReason, Offloads
from router.wire.segment import Train

SOL_UDP, UDP_SEGMENT = 17, 103  # linux/udp.h
_DONTWAIT = int(socket.MSG_DONTWAIT)
_BUSY_WAIT_MS = 1
"""Longest wait for room in the socket: back-pressure fills the TUN's ring, where the sender's stack sees it."""
_BUSY = (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM)

Unsent = tuple[DropReason | None, Sequence[int]]
"""Why datagrams of a train were not sent, and which; (None, ()) when all were."""
_ALL_SENT: Unsent = (None, ())


class Sender:
    """The way out of one thread: the shared underlay socket. Later tunnels (VXLAN, WireGuard) stand beside it."""

    def __init__(self, underlay: socket.socket, offloads: Offloads, overhead_bytes: int, host: Host) -> None:
        self._socket = underlay
        self._overhead_bytes = overhead_bytes
        self._segmenting = offloads.udp_segment
        self._host = host
        self._poll = select.poll()
        self._poll.register(underlay.fileno(), select.POLLOUT)
        self._control: dict[int, list[tuple[int, int, bytes]]] = {}

    def send(self, train: Train, peer: Peer) -> Unsent:
        """Send a train; return which of its datagrams the kernel did not take."""
        if train.packets == 1 or not (self._segmenting and peer.segmenting):
            return self._send_each(train, peer)
        control = self._control.get(train.segment_bytes)
        if control is None:
            control = [(SOL_UDP, UDP_SEGMENT, struct.pack("=H", train.segment_bytes))]
            self._control[train.segment_bytes] = control
        try:
            reason = self._send(train.datagrams, control, peer)
        except OSError as error:
            # EIO: the interface towards the peer cannot finish the checksums of a train (udp_send_skb, net/ipv4/udp.c)
            peer.segmenting = False
            self._host.offload_failed("udp_segment", f"towards {peer.next_hop.node}: {error.strerror}")
            return self._send_each(train, peer)
        return _ALL_SENT if reason is None else (reason, range(train.packets))

    def _send_each(self, train: Train, peer: Peer) -> Unsent:
        outcome, unsent = None, []
        for row in range(train.packets):
            reason = self._send(train.row(row), [], peer)
            if reason is not None:
                outcome = reason
                unsent.append(row)
        return outcome, unsent

    def _send(self, datagrams: memoryview, control: list[tuple[int, int, bytes]], peer: Peer) -> DropReason | None:
        while True:
            try:
                self._socket.sendmsg((datagrams,), control, _DONTWAIT, peer.sockaddr)
                return None
            except OSError as error:
                if error.errno in _BUSY:
                    if self._poll.poll(_BUSY_WAIT_MS) and error.errno == errno.EAGAIN:
                        continue
                    return DropReason.UNDERLAY_BUSY
                if error.errno == errno.EMSGSIZE or (error.errno == errno.EINVAL and control):
                    # EINVAL: a segment larger than the path MTU (udp_send_skb)
                    mtu_bytes = self._host.path_mtu(peer.next_hop.endpoint) - self._overhead_bytes
                    peer.lower_mtu(mtu_bytes, time.monotonic())
                    return DropReason.TOO_BIG
                if error.errno == errno.EIO and control:
                    raise
                return DropReason.UNDERLAY_ERROR

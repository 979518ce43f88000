"""A port of the bridge as the relay sees it: an AF_PACKET socket that takes only the frames it is asked to (packet(7)).

It gets what comes in at the port before the bridge has it (net/core/dev.c __netif_receive_skb_core: taps go before
rx_handler), with a virtio-net header (PACKET_VNET_HDR) that says which checksum is still to be filled in.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Iterator, Sequence

from shim.lab.relay.switch import MAC_BYTES

HEADER_BYTES = 10
"""struct virtio_net_hdr, which goes before each frame."""
_MOST_FRAME_BYTES = HEADER_BYTES + 14 + 4 + 65535
_RECEIVE_BUFFER_BYTES = 16 << 20

# linux/if_packet.h, linux/if_ether.h, asm-generic/socket.h
_SOL_PACKET, _PACKET_STATISTICS, _PACKET_VNET_HDR, _PACKET_IGNORE_OUTGOING = 263, 6, 15, 23
_ETH_P_ALL = 3
_SO_RCVBUFFORCE, _SO_ATTACH_FILTER = 33, 26

# linux/bpf_common.h: classic BPF, struct sock_filter (code, jump if true, jump if false, k)
_LOAD_BYTE, _LOAD_HALF, _LOAD_WORD = 0x30, 0x28, 0x20
_JUMP_EQUAL, _JUMP_SET, _RETURN = 0x15, 0x45, 0x06
_ALL, _NOTHING = 0xFFFFFFFF, 0


class Port:
    """One port, by the name of its device in this namespace."""

    def __init__(self, name: str) -> None:
        """Open it; nothing comes in until `listen_for`. OSError when there is no such device."""
        self.name = name
        self.missed = 0
        """Frames for which there was no room before the relay got to them; see `count_missed`."""
        self._buffer = bytearray(_MOST_FRAME_BYTES)
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        try:
            self._socket.setblocking(False)
            self._socket.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
            self._socket.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER_BYTES)
            self._attach(_program(()))
            self._socket.bind((name, _ETH_P_ALL))
        except OSError:
            self._socket.close()
            raise

    def close(self) -> None:
        """Let go of it."""
        self._socket.close()

    def fileno(self) -> int:
        """For select."""
        return self._socket.fileno()

    def listen_for(self, macs: Sequence[bytes]) -> None:
        """From now on take frames to these destinations and to groups; with none given nothing."""
        self._attach(_program(macs))

    def receive(self, most: int) -> Iterator[tuple[bytes, bytes]]:
        """Yield at most so many frames that are there: destination, and frame behind its virtio-net header."""
        for _ in range(most):
            try:
                size = self._socket.recv_into(self._buffer)
            except BlockingIOError:
                return
            except OSError:  # the port went down, or a frame that virtio-net has no words for
                self.missed += 1
                return
            if size >= HEADER_BYTES + 14:
                frame = bytes(memoryview(self._buffer)[:size])
                yield frame[HEADER_BYTES : HEADER_BYTES + MAC_BYTES], frame

    def send(self, frame: bytes) -> bool:
        """Send a frame behind its virtio-net header; return whether the kernel took it."""
        try:
            self._socket.send(frame)
        except OSError:
            return False
        return True

    def count_missed(self) -> int:
        """Return how many frames were missed so far."""
        # struct tpacket_stats; reading it sets it to 0
        _, drops = struct.unpack("II", self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
        self.missed += drops
        return self.missed

    def _attach(self, program: Sequence[tuple[int, int, int, int]]) -> None:
        code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in program))
        self._socket.setsockopt(
            socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(program), ctypes.addressof(code))
        )


def _program(macs: Sequence[bytes]) -> list[tuple[int, int, int, int]]:
    """Return a filter for frames to these and to groups; offsets count from the Ethernet header."""
    program: list[tuple[int, int, int, int]] = []
    if macs:
        program += [(_LOAD_BYTE, 0, 0, 0), (_JUMP_SET, 0, 1, 1), (_RETURN, 0, 0, _ALL)]
    for mac in macs:
        high, low = struct.unpack("!IH", mac)
        program += [
            (_LOAD_WORD, 0, 0, 0),
            (_JUMP_EQUAL, 0, 3, high),
            (_LOAD_HALF, 0, 0, 4),
            (_JUMP_EQUAL, 0, 1, low),
            (_RETURN, 0, 0, _ALL),
        ]
    return [*program, (_RETURN, 0, 0, _NOTHING)]

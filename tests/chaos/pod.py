"""The sockets of one Pod: made in its namespace, used by whoever holds them."""

from __future__ import annotations

import ctypes
import itertools
import socket
import struct
from pathlib import Path

from shim.lab import netns
from tests.chaos.payload import Who

UDP_PORT, TCP_PORT = 7001, 7002
_idents = itertools.count(1)

# linux/if_packet.h, asm-generic/socket.h, linux/icmp.h, linux/icmpv6.h, linux/sock_diag.h
_SOL_PACKET, _PACKET_IGNORE_OUTGOING, _ETH_P_ALL = 263, 23, 3
_SO_ATTACH_FILTER, _SO_MEMINFO, _SK_MEMINFO_DROPS = 26, 55, 8
_SOL_RAW, _ICMP_FILTER, _ICMPV6_FILTER = 255, 1, 1
_LOAD_BYTE, _LOAD_WORD, _SHIFT, _JUMP_EQUAL, _RETURN = 0x30, 0x20, 0x74, 0x15, 0x06


class PodSockets:
    """What a Pod's programs would have open. OSError while its interface is not there."""

    def __init__(self, who: Who, path: Path) -> None:
        self.who = who
        self.ident = next(_idents) & 0xFFFF
        self.udp: dict[int, socket.socket] = {}
        self.ping: dict[int, socket.socket] = {}
        self.listeners: dict[int, socket.socket] = {}
        self.forging: dict[int, socket.socket] = {}
        self._open: list[socket.socket] = []
        try:
            netns.call(path, self._make)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for each in self._open:
            each.close()

    def receive_drops(self) -> int:
        """Return how many datagrams found its UDP sockets full."""
        drops = 0
        for each in self.udp.values():
            memory = each.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 64)
            drops += struct.unpack_from("=I", memory, 4 * _SK_MEMINFO_DROPS)[0]
        return drops

    def connect(self, path: Path, family: int) -> socket.socket:
        """Make a TCP socket of this Pod's, bound to its address."""
        kind = socket.AF_INET if family == 4 else socket.AF_INET6
        made = netns.open_socket(path, kind, socket.SOCK_STREAM)
        made.setblocking(False)
        made.bind((str(self.who.address(family)), 0))
        return made

    def _make(self) -> None:
        for family, kind in ((4, socket.AF_INET), (6, socket.AF_INET6)):
            here = str(self.who.address(family))
            udp = self.udp[family] = self._new(kind, socket.SOCK_DGRAM)
            udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 19)
            udp.bind((here, UDP_PORT))
            listener = self.listeners[family] = self._new(kind, socket.SOCK_STREAM)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((here, TCP_PORT))
            listener.listen(64)
            self.forging[family] = self._new(kind, socket.SOCK_RAW, socket.IPPROTO_RAW)
        self.ping[4] = self._new(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        self.ping[4].setsockopt(_SOL_RAW, _ICMP_FILTER, struct.pack("=I", ~1 & 0xFFFFFFFF))  # echo replies only
        self.ping[4].bind((str(self.who.v4), 0))
        self.ping[6] = self._new(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
        mask = bytearray(b"\xff" * 32)
        mask[129 // 32 * 4 + 129 % 32 // 8] &= ~(1 << 129 % 8) & 0xFF
        self.ping[6].setsockopt(socket.IPPROTO_ICMPV6, _ICMPV6_FILTER, bytes(mask))
        self.ping[6].bind((str(self.who.v6), 0))
        stray = self.stray = self._new(socket.AF_PACKET, socket.SOCK_DGRAM)
        stray.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        _attach(stray, foreigners(self.who))
        stray.bind(("eth0", _ETH_P_ALL))

    def _new(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        made = socket.socket(family, kind, protocol)
        made.setblocking(False)
        self._open.append(made)
        return made


def foreigners(who: Who) -> list[tuple[int, int, int, int]]:
    """Return a filter (classic BPF) for packets whose destination is no address of that Pod's."""
    six = struct.unpack("!4I", who.v6.packed)
    take, leave = (_RETURN, 0, 0, 0xFFFFFFFF), (_RETURN, 0, 0, 0)
    return [
        (_LOAD_BYTE, 0, 0, 0),
        (_SHIFT, 0, 0, 4),
        (_JUMP_EQUAL, 0, 4, 4),
        (_LOAD_WORD, 0, 0, 16),
        (_JUMP_EQUAL, 0, 1, int(who.v4)),
        leave,
        take,
        (_LOAD_WORD, 0, 0, 24),
        (_JUMP_EQUAL, 0, 7, six[0]),
        (_LOAD_WORD, 0, 0, 28),
        (_JUMP_EQUAL, 0, 5, six[1]),
        (_LOAD_WORD, 0, 0, 32),
        (_JUMP_EQUAL, 0, 3, six[2]),
        (_LOAD_WORD, 0, 0, 36),
        (_JUMP_EQUAL, 0, 1, six[3]),
        leave,
        take,
    ]


def _attach(found: socket.socket, program: list[tuple[int, int, int, int]]) -> None:
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in program))
    address = struct.pack("@HP", len(program), ctypes.addressof(code))
    found.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, address)

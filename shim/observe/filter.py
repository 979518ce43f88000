"""Capture filters in the language of pcap-filter(7), compiled by libpcap to classic BPF.

libpcap is loaded when a filter is given, and not before: a capture of everything does without.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

LIBRARY = "libpcap.so.0.8"
"""Debian's name of it; others say libpcap.so.1."""
_LIBRARIES = (LIBRARY, "libpcap.so.1")
_DLT_RAW = 12
"""Packets from their IP header on (pcap/dlt.h, Linux)."""
_SNAP_BYTES = 0x40000
"""What a program returns of a packet that matches; the router copies as much as it is asked to."""
_NETMASK_UNKNOWN = 0xFFFFFFFF
_ERROR_BYTES = 256
_MOST_BYTES = 16384


class FilterError(Exception):
    """A filter that cannot be compiled, and why."""


class Instruction(NamedTuple):
    """Of a classic BPF program (linux/filter.h, struct sock_filter)."""

    code: int
    jt: int
    jf: int
    k: int


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte), ("k", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint), ("instructions", ctypes.POINTER(_Instruction)))


def compile_filter(text: str) -> tuple[Instruction, ...]:
    """Compile a filter for packets from their IP header on; FilterError says what is wrong with it, or what is missing."""
    if "\0" in text or len(text.encode(errors="replace")) > _MOST_BYTES:
        raise FilterError(f"the filter has a NUL character, or more than {_MOST_BYTES} bytes")
    pcap = _load()
    handle = pcap.pcap_open_dead(_DLT_RAW, _SNAP_BYTES)
    if not handle:
        raise FilterError("libpcap has no memory")
    try:
        program = _Program()
        if pcap.pcap_compile(handle, ctypes.byref(program), text.encode(errors="replace"), 1, _NETMASK_UNKNOWN):
            why = pcap.pcap_geterr(handle).decode(errors="replace")
            raise FilterError(f"filter {text!r}: {why}; `man pcap-filter` has the language")
        try:
            return tuple(
                Instruction(each.code, each.jt, each.jf, each.k) for each in program.instructions[: program.length]
            )
        finally:
            pcap.pcap_freecode(ctypes.byref(program))
    finally:
        pcap.pcap_close(handle)


def _load() -> ctypes.CDLL:
    for name in _LIBRARIES:
        try:
            pcap = ctypes.CDLL(name)
        except OSError:
            continue
        pcap.pcap_open_dead.restype = ctypes.c_void_p
        pcap.pcap_open_dead.argtypes = (ctypes.c_int, ctypes.c_int)
        pcap.pcap_compile.argtypes = (
            ctypes.c_void_p, ctypes.POINTER(_Program), ctypes.c_char_p, ctypes.c_int, ctypes.c_uint32,
        )  # fmt: skip
        pcap.pcap_geterr.restype = ctypes.c_char_p
        pcap.pcap_geterr.argtypes = (ctypes.c_void_p,)
        pcap.pcap_freecode.argtypes = (ctypes.POINTER(_Program),)
        pcap.pcap_close.argtypes = (ctypes.c_void_p,)
        return pcap
    raise FilterError(
        f"{LIBRARY} is not there, and it compiles filters: install the package libpcap0.8 (Debian, Ubuntu) or libpcap "
        "(others), or leave the filter away"
    )

"""Classic BPF: check a filter program that somebody sent, and run it over a packet. Pure.

As the kernel does (net/core/filter.c: bpf_check_classic, bpf_prog_run of old; BSD's bpf_filter.c), with no ancillary
loads. Jumps only go forward, so a program ends after as many steps as it has instructions. What the kernel leaves to
the machine or refuses is defined here: a shift by more than 31 gives 0, a scratch cell not stored to is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from router.wire.packet import Buffer

MOST_INSTRUCTIONS: Final = 4096
"""BPF_MAXINSNS."""

Program = Sequence[tuple[int, int, int, int]]
"""(code, jt, jf, k) each, as struct sock_filter."""

_MASK: Final = 0xFFFFFFFF
_LD, _LDX, _ST, _STX, _ALU, _JMP, _RET, _MISC = range(8)
_W, _H, _B = 0x00, 0x08, 0x10
_IMM, _ABS, _IND, _MEM, _LEN, _MSH = 0x00, 0x20, 0x40, 0x60, 0x80, 0xA0
_SIZES: Final = {_W: 4, _H: 2, _B: 1}
_SCRATCH: Final = 16
_LOADS: Final = frozenset(
    (_LD | size | mode for size in _SIZES for mode in (_ABS, _IND)),
) | frozenset((_LD | _IMM, _LD | _LEN, _LD | _MEM, _LDX | _IMM, _LDX | _LEN, _LDX | _MEM, _LDX | _B | _MSH))
_ALU_OPS: Final = {
    0x00: "add", 0x10: "sub", 0x20: "mul", 0x30: "div", 0x40: "or", 0x50: "and", 0x60: "lsh", 0x70: "rsh",
    0x80: "neg", 0x90: "mod", 0xA0: "xor",
}  # fmt: skip
_NEG_X: Final = 0x8C
_JUMPS: Final = (0x10, 0x20, 0x30, 0x40)  # jeq jgt jge jset


def check(program: Program) -> str:
    """Return why a program cannot be run, in words; empty when it can."""
    if len(program) > MOST_INSTRUCTIONS:
        return f"it has {len(program)} instructions, and at most {MOST_INSTRUCTIONS} are allowed"
    for at, (code, jt, jf, k) in enumerate(program):
        if not (0 <= code <= 0xFFFF and 0 <= jt <= 0xFF and 0 <= jf <= 0xFF and 0 <= k <= _MASK):
            return f"instruction {at}: a field is out of range"
        why = _against(code, jt, jf, k, len(program) - at - 1)
        if why:
            return f"instruction {at}: {why}"
    if program and program[-1][0] & 7 != _RET:
        return "its last instruction does not return"
    return ""


def _against(code: int, jt: int, jf: int, k: int, left: int) -> str:
    kind = code & 7
    if kind in (_LD, _LDX):
        if code not in _LOADS:
            return f"no such load (code {code:#x})"
        return "no such scratch cell" if code & 0xE0 == _MEM and k >= _SCRATCH else ""
    if kind in (_ST, _STX):
        return "no such scratch cell" if k >= _SCRATCH else "" if code == kind else f"no such store (code {code:#x})"
    if kind == _ALU:
        name = _ALU_OPS.get(code & 0xF0)
        if name is None or code & ~0xFF or code == _NEG_X:
            return f"no such operation (code {code:#x})"
        if name in ("lsh", "rsh") and not code & 8 and k > 31:
            return "it shifts by more than 31 bits"
        return "division by zero" if name in ("div", "mod") and not code & 8 and k == 0 else ""
    if kind == _JMP:
        if code == _JMP:
            return "it jumps past the end" if k >= left else ""
        if code & 0xF0 not in _JUMPS or code & ~0xFF:
            return f"no such jump (code {code:#x})"
        return "it jumps past the end" if max(jt, jf) >= left else ""
    if kind == _RET:
        return "" if code in (_RET, _RET | 0x10) else f"no such return (code {code:#x})"
    return "" if code in (_MISC, _MISC | 0x80) else f"no such instruction (code {code:#x})"


def run(program: Program, packet: Buffer) -> int:
    """Run a checked program over a packet; 0 means it does not match. A load past its end gives 0, as in the kernel."""
    if not program:
        return _MASK
    a = x = at = 0
    size = len(packet)
    cells = [0] * _SCRATCH
    while True:
        code, jt, jf, k = program[at]
        at += 1
        kind = code & 7
        if kind == _LD:
            mode = code & 0xE0
            if mode in (_ABS, _IND):
                wide = _SIZES[code & 0x18]
                where = k if mode == _ABS else (x + k) & _MASK
                if where + wide > size:
                    return 0
                a = int.from_bytes(packet[where : where + wide], "big")
            else:
                a = k if mode == _IMM else size if mode == _LEN else cells[k]
        elif kind == _LDX:
            mode = code & 0xE0
            if mode == _MSH:
                if k >= size:
                    return 0
                x = 4 * (packet[k] & 0x0F)
            else:
                x = k if mode == _IMM else size if mode == _LEN else cells[k]
        elif kind == _ST:
            cells[k] = a
        elif kind == _STX:
            cells[k] = x
        elif kind == _ALU:
            value = _compute(_ALU_OPS[code & 0xF0], a, x if code & 8 else k)
            if value is None:
                return 0
            a = value
        elif kind == _JMP:
            at += k if code == _JMP else (jt if _holds(code & 0xF0, a, x if code & 8 else k) else jf)
        elif kind == _RET:
            return a if code & 0x10 else k
        elif code & 0x80:
            a = x
        else:
            x = a


def _compute(name: str, a: int, b: int) -> int | None:
    """Return the result; None for a division by zero, which ends the program."""
    if name in ("div", "mod"):
        if b == 0:
            return None
        return a // b if name == "div" else a % b
    if name in ("lsh", "rsh"):
        if b > 31:
            return 0
        return (a << b) & _MASK if name == "lsh" else a >> b
    if name == "neg":
        return -a & _MASK
    results = {"add": a + b, "sub": a - b, "mul": a * b, "or": a | b, "and": a & b, "xor": a ^ b}
    return results[name] & _MASK


def _holds(jump: int, a: int, b: int) -> bool:
    if jump == 0x10:
        return a == b
    if jump == 0x20:
        return a > b
    return a >= b if jump == 0x30 else bool(a & b)

"""Damage to bytes, to texts and to trees of JSON, each from a seeded sequence."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from random import Random
from typing import Any

MOST_BYTES = 1 << 20
INTERESTING = (
    0,
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    15,
    16,
    17,
    20,
    39,
    40,
    41,
    44,
    58,
    60,
    64,
    0x45,
    0x4F,
    0x60,
    127,
    128,
    0x81,
    254,
    255,
)
WORDS = (0, 1, 2, 3, 4, 7, 8, 19, 20, 0x7F, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF)
SNIPPETS = (
    "", "\0", "\n", "\r\n", "\t", " ", "\u00a0", "\u2028", "\ufeff", "\U0001f980", "é", "\x1b[31m", "\x7f", "..", "/", "//", "../../etc",
    "-", "--", "-1", "0", "00", "1e999", "0x10", "1_000", "9" * 20, "9" * 5000, "9223372036854775807", "18446744073709551616",
    "NaN", "Infinity", "true", "null", "[", "]", "{", "}", "[" * 5000, '{"a":' * 5000, "(", '"', "'", '"""', "\\", "\\u0000",
    "\\ud800", "=", ":", ",", "#", "%", "%41", "%s", "10.0.0.0/8", "10.0.0.1/8", "0.0.0.0/0", "::/0", "fe80::1%eth0", "::ffff:1.2.3.4",
    "255.255.255.255", "224.0.0.1", "[::1]:99999", "1.2.3.4:0", "a" * 300, "a" * 70_000, "<script>", "$(id)", "`id`", ";",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 65535, 65536, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**63, 2**64, 10**30, 0.5, -0.0, 1e308, [], {}, [[]], [{}], {"": ""},
    [None], ["x"], "x", "eth0", "10.1.2.3", "10.1.2.0/24", "fd00::1", "fd00::/64", "tcp", *SNIPPETS,
)  # fmt: skip


def damaged(random: Random, whole: bytes, *, front: int = 96) -> bytes:
    """Return bytes with some damage; headers are at the `front`, and damage there tells more."""
    out = bytearray(whole)
    for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
        if not out:
            return random.randbytes(random.randrange(1, 64))
        at = random.randrange(min(len(out), random.choice((12, 24, 48, front, len(out)))))
        how = random.randrange(10)
        if how == 0:
            out[at] ^= 1 << random.randrange(8)
        elif how == 1:
            out[at] = random.choice(INTERESTING)
        elif how == 2:
            out[at : at + 2] = random.choice(WORDS).to_bytes(2, random.choice(("big", "little")))
        elif how == 3:
            del out[random.randrange(len(out)) :]
        elif how == 4:
            out += random.randbytes(random.randrange(1, 60))
        elif how == 5:
            del out[at : at + random.randrange(1, 9)]
        elif how == 6:
            out[at:at] = random.randbytes(random.randrange(1, 9))
        elif how == 7:
            out[at : at + 4] = b"\xff" * 4
        elif how == 8:
            end = random.randrange(at, min(len(out), at + 64)) + 1
            out[at:at] = out[at:end] * random.choice((1, 2, 30))
        else:
            out[at] = random.randrange(256)
    return bytes(out)


def some(random: Random, valid: Sequence[bytes]) -> bytes:
    """Return noise, a valid input, or a damaged one."""
    kind = random.random()
    if kind < 0.05:
        return random.randbytes(random.randrange(1, 200))
    whole = random.choice(valid)
    if kind < 0.1:
        return whole
    if kind < 0.15:
        other = random.choice(valid)
        return whole[: random.randrange(len(whole) + 1)] + other[random.randrange(len(other) + 1) :]
    return damaged(random, whole)


def text(random: Random, valid: Sequence[str], words: Sequence[str] = ()) -> bytes:
    """Return a text with words, lines and characters taken out, put in, doubled or exchanged; at times no UTF-8."""
    found = random.choice(valid)
    for _ in range(random.choice((1, 1, 2, 4))):
        at = random.randrange(len(found) + 1)
        end = min(len(found), at + random.choice((0, 1, 1, 3, 12)))
        how = random.randrange(6)
        if how == 0:
            found = found[:at] + found[end:]
        elif how == 1:
            found = found[:at] + random.choice(SNIPPETS) + found[end:]
        elif how == 2 and words:
            found = found[:at] + random.choice(words) + found[end:]
        elif how == 3:
            lines = found.splitlines(keepends=True)
            if lines:
                line = random.randrange(len(lines))
                lines[line : line + 1] = random.choice(([], [lines[line]] * 2, [random.choice(lines)]))
            found = "".join(lines)
        elif how == 4:
            found = _another_value(random, found)
        else:
            found = found[:at] + chr(random.randrange(1, 0x3000)) + found[at:]
    whole = found.encode("utf-8", "surrogatepass")[:MOST_BYTES]
    return damaged(random, whole) if random.random() < 0.1 else whole


def _another_value(random: Random, found: str) -> str:
    """Put another text between two quotes, or behind an equals sign."""
    marks = [at for at, letter in enumerate(found) if letter in "\"'="]
    if len(marks) < 2:
        return found
    at = random.randrange(len(marks) - 1)
    return found[: marks[at] + 1] + random.choice(SNIPPETS) + found[marks[at + 1] :]


def tree(random: Random, found: Any, keys: Sequence[str] = ()) -> Any:
    """Return a copy of a JSON value in which something is gone, is something else, or is there once more."""
    found, grown = json.loads(json.dumps(found)), False  # but once: input is to be hostile, not large
    for _ in range(random.choice((1, 1, 2, 5))):
        inner, way = found, []
        while isinstance(inner, dict | list) and inner and (not way or random.random() < 0.75):
            step = random.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
            way.append((inner, step))
            inner = inner[step]
        if not way:
            return _value(random)
        holder, step = way[-1]
        how = random.randrange(6)
        if how == 0:
            del holder[step]
        elif how == 1 and isinstance(holder, list):
            holder.insert(step, _value(random))
        elif how == 2 and keys and isinstance(holder, dict):
            holder[random.choice(keys)] = _value(random)
        elif how == 3 and isinstance(holder[step], str) and holder[step]:
            at = random.randrange(len(holder[step]))
            holder[step] = holder[step][:at] + random.choice(SNIPPETS) + holder[step][at + 1 :]
        elif how == 4 and isinstance(holder[step], list) and not grown:
            holder[step], grown = holder[step] * random.choice((2, 3, 100)), True
        else:
            holder[step] = _value(random)
    return found


def _value(random: Random) -> Any:
    """Return one of the values, a copy: what is put into a tree may be changed in it."""
    return copy.deepcopy(random.choice(VALUES))


def document(random: Random, valid: Sequence[Any], keys: Sequence[str] = ()) -> bytes:
    """Return JSON with another tree, or with damage to its text."""
    chosen = random.choice(valid)
    if random.random() < 0.75:
        chosen = tree(random, chosen, keys)
    whole = json.dumps(chosen, ensure_ascii=random.random() < 0.5)
    if random.random() < 0.25:
        return text(random, (whole,))
    return whole.encode("utf-8", "surrogatepass")[:MOST_BYTES]

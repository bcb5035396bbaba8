"""How is a broken invariant said to a person? The numbers of FORMAT.md, "Invariants", in words.

Each has a kind: *damage* (bytes that no code of ours writes), *debris* (what a dead process left) or *drift*
(a hint that is off, as ordinary life leaves it). `describe` words one finding of the native walk; nothing here
reads shared memory. Called by `fsck`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["INVARIANTS", "Invariant", "Subject", "describe"]

_TAGS: Final = {0: "free", 1: "claimed", 2: "ready", 3: "evicting"}


@dataclass(frozen=True, slots=True)
class Invariant:
    """One row of FORMAT.md: what holds, what it is when it does not, and what a repair does then."""

    number: int
    name: str
    kind: str  # "damage" | "debris" | "drift"
    repair: str


@dataclass(frozen=True, slots=True)
class Subject:
    """What a finding's numbers refer to: the geometry of the region they were found in."""

    records_per_segment: int
    record_count: int
    journal_entry_count: int


def _rows(*rows: tuple[int, str, str, str]) -> dict[int, Invariant]:
    return {number: Invariant(number, name, kind, repair) for number, name, kind, repair in rows}


INVARIANTS: Final = _rows(
    (1, "header", "damage", ""),
    (2, "payload files", "damage", ""),
    (3, "reserved bytes", "damage", "set to zero"),
    (4, "segments ready", "damage", "set to what is in use"),
    (5, "access clock", "damage", "clock advanced, or the touch made the oldest"),
    (6, "journal", "damage", "head advanced, or the entry dropped"),
    (7, "counter labels", "damage", "written again"),
    (8, "namespace word", "damage", "namespace freed, its blocks evicted"),
    (9, "resident bytes", "drift", "counted again"),
    (10, "client word", "damage", "set to what the kernel's locks say"),
    (11, "client alive", "debris", "client reaped"),
    (12, "segment word", "damage", "segment unassigned, its blocks evicted"),
    (13, "segment owner alive", "debris", "client reaped, segment put back"),
    (14, "state word", "damage", "freed, once nobody is attached"),
    (15, "owner alive", "debris", "client reaped, block freed"),
    (16, "pins alive", "debris", "client reaped, pin cleared"),
    (17, "has memory", "damage", "evicted"),
    (18, "place", "damage", "evicted"),
    (19, "key", "damage", "evicted"),
    (20, "reachable", "damage", "evicted"),
    (21, "single", "drift", "evicted"),
    (22, "touched", "damage", "made the oldest"),
    (23, "free bit", "debris", "free bit set"),
    (24, "free bit only", "drift", "free bit cleared"),
    (25, "entry filed", "damage", "entry erased"),
    (26, "bucket room", "drift", "stale entries erased"),
    (27, "namespace limits", "damage", "no limit, until a client registers it again"),
    (
        28,
        "spill record",
        "damage",
        "freed; the block is on SSD still, and listed when the transport worker starts",
    ),
    (29, "checksums", "damage", "evicted"),
    (30, "remote hint", "damage", "erased"),
    (31, "remote summary", "drift", "written again"),
    (32, "reuse words", "drift", "erased"),
)


def describe(row: Any, subject: Subject) -> tuple[str, str]:
    """(where, what is wrong) for one row of the native walk's findings."""
    number, slot = int(row["invariant"]), int(row["slot"])
    where, seen, expected = int(row["where"]), int(row["seen"]), int(row["expected"])
    place, words = _WORDS[number]
    return place(where, subject), words(seen, expected, slot)


_Place = Callable[[int, Subject], str]
_Words = Callable[[int, int, int], str]


def _record(where: int, subject: Subject) -> str:
    segment, index = divmod(where, subject.records_per_segment)
    return f"record {where} (segment {segment}, block {index})"


def _record_or_clock(where: int, subject: Subject) -> str:
    return "header, access_clock" if where == subject.record_count else _record(where, subject)


def _journal(where: int, subject: Subject) -> str:
    at_head = where == subject.journal_entry_count
    return "header, journal_head" if at_head else f"journal entry {where}"


def _entry(where: int, _: Subject) -> str:
    return f"index bucket {where // 8}, entry {where % 8}"


def _hint(where: int, _: Subject) -> str:
    return f"bucket {where // 8} of remote hints, entry {where % 8}"


def _numbered(what: str) -> _Place:
    return lambda where, _: f"{what} {where}"


def _state(seen: int, _: int, __: int) -> str:
    tag, owner, generation = seen & 0xFF, seen >> 8 & 0xFFFF, seen >> 24
    if tag not in _TAGS:
        why = f"{tag} is no state"
    elif generation == 0:
        why = "generation 0 is never used"
    elif tag in (0, 2):
        why = f"a {_TAGS[tag]} block has no owner, here it is {owner}"
    else:
        why = f"its owner {owner} is no client slot"
    return f"state word 0x{seen:016x} cannot be: {why}"


def _segment_word(seen: int, _: int, __: int) -> str:
    return (
        f"word 0x{seen:016x} cannot be: state {seen & 0xFF}, owner {seen >> 8 & 0xFF}, "
        f"stride of {seen >> 40} pages"
    )


def _owner(seen: int, _: int, slot: int) -> str:
    return f"{_TAGS[seen & 0xFF]} by client slot {slot}, where nobody lives"


def _touch(seen: int, expected: int, _: int) -> str:
    if expected == 0:
        return f"{seen} is no count of anything"
    return f"last used at {seen}, but the clock stands at {expected}"


def _sequence(seen: int, expected: int, _: int) -> str:
    if expected == 0:
        return f"sequence {seen} is no count of anything"
    return f"sequence {seen} cannot stand here, or its fields cannot be (head {expected})"


_WORDS: Final[dict[int, tuple[_Place, _Words]]] = {
    3: (
        _numbered("control byte"),
        lambda s, e, _: f"reserved, so 0; it is {s} (field of {e} bytes)",
    ),
    4: (lambda _, __: "header, segments_ready", lambda s, e, _: f"is {s}, expected {e}"),
    5: (_record_or_clock, _touch),
    6: (_journal, _sequence),
    7: (_numbered("counter"), lambda _, __, ___: "its label is not what this build writes"),
    8: (_numbered("namespace slot"), lambda s, _, __: f"word 0x{s:016x} cannot be"),
    9: (_numbered("namespace slot"), lambda s, e, _: f"{s} bytes resident, counted {e}"),
    10: (_numbered("client slot"), lambda s, e, _: f"word 0x{s:016x}, mode {e}: cannot be"),
    11: (_numbered("client slot"), lambda _, e, __: f"attached (pid {e}), but nobody lives there"),
    12: (_numbered("segment"), _segment_word),
    13: (
        _numbered("segment"),
        lambda _, __, c: f"being changed by client slot {c}, where nobody lives",
    ),
    14: (_record, _state),
    15: (_record, _owner),
    16: (_record, lambda _, __, c: f"pinned by client slot {c}, where nobody lives"),
    17: (_record, lambda _, __, ___: "ready, but its segment has no such block"),
    18: (_record, lambda s, e, _: f"place or size {s}, where only {e} can be"),
    19: (_record, lambda s, _, __: f"its key or namespace cannot be (identity 0x{s:016x})"),
    20: (_record, lambda _, __, ___: "ready, but the index does not name it"),
    21: (_record, lambda _, e, __: f"ready with the same key as record {e}"),
    22: (_record, lambda _, __, ___: "ready, but never used: it would never be evicted"),
    23: (_record, lambda _, __, ___: "free, but without its free bit: nobody would use it"),
    24: (_record, lambda s, _, __: f"{_TAGS.get(s & 0xFF, 'damaged')}, but with a free bit"),
    25: (_entry, lambda s, _, __: f"0x{s:016x} names no record, or one of another key"),
    26: (_numbered("index bucket"), lambda s, _, __: f"full, with {s} of 8 entries stale"),
    27: (_numbered("namespace slot"), lambda s, e, _: f"a limit of {s} bytes, the arena has {e}"),
    28: (
        _numbered("spill record"),
        lambda s, _, __: f"state 0x{s:016x} cannot be with its place and key, or no entry names it",
    ),
    29: (
        _record,
        lambda s, e, _: f"parts 0x{s:016x} and checksums do not fit its {e} bytes or each other",
    ),
    30: (_hint, lambda s, _, __: f"0x{s:016x} names no tier"),
    31: (
        lambda _, __: "header, remote_usable",
        lambda s, e, _: f"is 0x{s:016x}, the hosts' bits say 0x{e:016x}",
    ),
    32: (
        _numbered("reuse word"),
        lambda s, _, __: f"0x{s:016x} is of a time to come, or not of its place",
    ),
}

"""Does a changed header byte ever do worse than being refused or doing nothing?

Every byte of the header is changed in three ways, in child processes; each time the arena is opened and,
if it opens, used for all that engines and tools do. No change may crash or hang, and a change to what
sizes and offsets are made of must be refused.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pegashm._native import HEADER_BYTES

from tests.children import run_child
from tests.format.spec import fields_of

CHILDREN = 4
# Labels and words that engines advance: any value of them is a possible one.
HARMLESS = {
    "format_minor", "region_id", "created_at_ns", "page_bytes", "segments_ready", "supervisor_pid",
    "supervisor_started_at_ns", "access_clock", "freed_clock", "journal_head", "arenas", "reserved",
    "spill_usable", "remote_usable", "eviction", "span", "again_share", "draining_since_ns", "transport_pid", "transport_started_at_ns", "transport_path_bytes", "transport_path",
}  # fmt: skip
REFUSALS = {"ArenaNotReadyError", "FormatError"}


@pytest.mark.parametrize("part", range(CHILDREN))
def test_every_byte_of_the_header(arena_name: Callable[..., str], part: int) -> None:
    """Refused or harmless, never a crash; and geometry is always refused."""
    count = HEADER_BYTES // CHILDREN
    outcomes = run_child("tests.format.flips", arena_name(), part * count, count)
    assert count == len(outcomes)
    for field in fields_of("Header"):
        if field.name in HARMLESS:
            continue
        for offset in range(field.offset, field.offset + field.size):
            accepted = set(outcomes.get(str(offset), [])) - REFUSALS
            assert not accepted, f"a change of {field.name} (byte {offset}) was accepted"

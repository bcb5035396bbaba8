"""Which mistakes does the explorer have to catch? Each is planted in a copy of the core, by exact text.

All are compiled into one program and chosen when it runs, so that planting costs one compilation: `old`, an
expression or a statement of the header, becomes a choice between `new` and itself. build.py asserts that the
text occurs exactly once, so that a changed core cannot make a mistake vanish unnoticed.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MUTANTS", "Mutant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One classic mistake and the scenarios of which at least one must show it."""

    name: str
    header: str
    old: str
    new: str
    caught_by: tuple[str, ...]
    statement: bool = False


MUTANTS = (
    Mutant(
        name="pin: state not read again after the bit is set",
        header="pins.hpp",
        old="return block_tag(state) == BlockTag::ready &&\n"
        "         block_generation(state) == handle_generation(handle);",
        new="(void)state; return true;",
        statement=True,
        caught_by=("find_reclaim",),
    ),
    Mutant(
        name="pin: generation not compared",
        header="pins.hpp",
        old="block_generation(state) == handle_generation(handle)",
        new="true",
        caught_by=("find_reclaim",),
    ),
    Mutant(
        name="pin: bit set with relaxed order",
        header="pins.hpp",
        old="or_seq(block.pins[slot / 64], pin_bit(slot))",
        new="::explore::or_relaxed(block.pins[slot / 64], pin_bit(slot))",
        caught_by=("find_reclaim", "find_replace"),
    ),
    Mutant(
        name="pin: state read with acquire, not seq_cst",
        header="pins.hpp",
        old="load_seq(block.state)",
        new="load_acquire(block.state)",
        caught_by=("find_reclaim", "find_replace"),
    ),
    Mutant(
        name="pin: bits read with acquire, not seq_cst",
        header="pins.hpp",
        old="load_seq(block.pins[0]) | load_seq(block.pins[1])",
        new="load_acquire(block.pins[0]) | load_acquire(block.pins[1])",
        caught_by=("find_reclaim", "find_replace"),
    ),
    Mutant(
        name="evict: pins read only before the CAS",
        header="blocks.hpp",
        old="if (is_pinned(block)) {\n",
        new="if (false) {\n",
        caught_by=("find_reclaim", "find_replace"),
    ),
    Mutant(
        name="publish: CAS with relaxed order",
        header="blocks.hpp",
        old="cas_seq(block.state, claimed, block_state(BlockTag::ready, 0, generation))",
        new="::explore::cas_relaxed(block.state, claimed,"
        " block_state(BlockTag::ready, 0, generation))",
        caught_by=("publish_find",),
    ),
    Mutant(
        name="find: key not compared",
        header="index.hpp",
        old="!same_key(block, key)",
        new="false",
        caught_by=("find_handle", "find_new", "twin_keys"),
    ),
    Mutant(
        name="find: state read with relaxed order",
        header="index.hpp",
        old="const uint64_t state = load_acquire(block.state);\n    const BlockTag tag",
        new="const uint64_t state = load_relaxed(block.state);\n    const BlockTag tag",
        caught_by=("find_reclaim", "find_handle", "find_new"),
    ),
    Mutant(
        name="parts: reported with relaxed order",
        header="client.hpp",
        old="add_release(view.block(handle_record(handle)).parts, ok ? 1 : uint64_t{1} << 32)",
        new="add_relaxed(view.block(handle_record(handle)).parts, ok ? 1 : uint64_t{1} << 32)",
        caught_by=("publish_find",),
    ),
    Mutant(
        name="re-assignment: CLAIMED blocks overlooked",
        header="segments.hpp",
        old="if (block_tag(state) == BlockTag::free) continue;",
        new="if (block_tag(state) == BlockTag::free || block_tag(state) == BlockTag::claimed) continue;",
        statement=True,
        caught_by=("change_claim",),
    ),
    Mutant(
        name="claim: segment not read again",
        header="segments.hpp",
        old="load_seq(view.segment(segment).state) == state",
        new="((void)view, (void)segment, (void)state, true)",
        caught_by=("change_claim",),
    ),
    Mutant(
        name="claim: segment read again with acquire, not seq_cst",
        header="segments.hpp",
        old="load_seq(view.segment(segment).state) == state",
        new="load_acquire(view.segment(segment).state) == state",
        caught_by=("change_claim",),
    ),
    Mutant(
        name="release: free bit set before the state",
        header="blocks.hpp",
        old="const uint64_t next = next_generation(block_generation(state));",
        new="or_seq(view.free_bits(record), uint64_t{1} << (record % 64));",
        statement=True,
        caught_by=("free_bit",),
    ),
    Mutant(
        name="claim: free bit not put back",
        header="blocks.hpp",
        old="block_tag(load_seq(block.state)) == BlockTag::free",
        new="false",
        caught_by=("free_bit",),
    ),
    Mutant(
        name="journal: sequence stored first",
        header="journal.hpp",
        old="store_release(entry.sequence, 0)",
        new="store_release(entry.sequence, sequence)",
        caught_by=("journal_two",),
    ),
)

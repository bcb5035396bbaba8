"""Which mistakes does the explorer have to catch? Each is planted in a copy of the core, by exact text.

All are compiled into one program and chosen when it runs, so that planting costs one compilation: `old`, an
expression or a statement of the header, becomes a choice between `new` and itself (build.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["MUTANTS", "Mutant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One classic mistake, and the scenarios each of which must show it."""

    name: str
    header: str
    old: str
    new: str
    caught_by: tuple[str, ...]
    # What `old` is. "before": `new` is done first. "text": `new` stands there always, and asks PLANTED itself.
    kind: Literal["expression", "statement", "before", "text"] = "expression"


MUTANTS = (
    # -- pin against evict --------------------------------------------------------------------------
    Mutant(
        name="pin: state not read again after the bit is set",
        header="pins.hpp",
        old="return block_tag(state) == BlockTag::ready &&\n"
        "         block_generation(state) == handle_generation(handle);",
        new="(void)state; return true;",
        kind="statement",
        caught_by=("find_reclaim",),
    ),
    Mutant(
        name="pin: generation not compared",
        header="pins.hpp",
        old="block_generation(state) == handle_generation(handle)",
        new="true",
        caught_by=("find_reclaim", "find_replace"),
    ),
    Mutant(
        name="pin: the bit set after the state is read, not before",
        header="pins.hpp",
        old="or_seq(block.pins[slot / 64], pin_bit(slot));",
        new="const uint64_t early = load_seq(block.state);"
        " or_seq(block.pins[slot / 64], pin_bit(slot));"
        " return early == block_state(BlockTag::ready, 0, handle_generation(handle));",
        kind="statement",
        caught_by=("find_reclaim", "find_replace"),
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
        new="if (!PLANTED && is_pinned(block)) {\n",
        kind="text",
        caught_by=("find_reclaim", "find_replace"),
    ),
    Mutant(
        name="evict: the record's generation does not advance",
        header="blocks.hpp",
        old="next_generation(block_generation(state))",
        new="block_generation(state)",
        caught_by=("find_reclaim",),
    ),
    Mutant(
        name="evict and keep the record: its generation does not advance",
        header="blocks.hpp",
        old="next_generation(handle_generation(handle))",
        new="handle_generation(handle)",
        caught_by=("find_replace",),
    ),
    # -- publish against find -----------------------------------------------------------------------
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
        name="find: state not read again after the key",
        header="index.hpp",
        old="load_acquire(block.state) != state",
        new="false",
        caught_by=("find_handle",),
    ),
    Mutant(
        name="find: key read with relaxed order",
        header="index.hpp",
        old="load_acquire(block.key[i]) != key.words[i]",
        new="load_relaxed(block.key[i]) != key.words[i]",
        caught_by=("find_handle",),
    ),
    Mutant(
        name="claim: key written with relaxed order",
        header="index.hpp",
        old="store_release(block.key[i], key.words[i])",
        new="store_relaxed(block.key[i], key.words[i])",
        caught_by=("find_handle",),
    ),
    Mutant(
        name="parts: reported with relaxed order",
        header="client.hpp",
        old="add_release(view.block(handle_record(handle)).parts, ok ? 1 : uint64_t{1} << 32)",
        new="add_relaxed(view.block(handle_record(handle)).parts, ok ? 1 : uint64_t{1} << 32)",
        caught_by=("publish_find", "publish_sums"),
    ),
    Mutant(
        name="parts: published when some have reported",
        header="client.hpp",
        old="done == expected && failed == 0",
        new="done != 0 && failed == 0",
        caught_by=("publish_find", "publish_sums"),
    ),
    # -- damage -------------------------------------------------------------------------------------
    Mutant(
        name="pin: mark of damage not looked at",
        header="client.hpp",
        old="!is_damaged(view_.block(record))",
        new="true",
        caught_by=("mark_find",),
    ),
    Mutant(
        name="claim: a damaged block does not give way",
        header="client.hpp",
        old="evict_block(view_, slot_, found.handle) != Outcome::ok",
        new="true",
        caught_by=("mark_claim", "mark_late"),
    ),
    Mutant(
        name="claim: checksums and mark of the former life not cleared",
        header="blocks.hpp",
        old="clear_sums(view, handle_record(handle));",
        new="",
        kind="statement",
        caught_by=("mark_claim", "reuse_sums"),
    ),
    # -- reserves -----------------------------------------------------------------------------------
    Mutant(
        name="evict: the reserve looked at before the bytes are taken",
        header="quota.hpp",
        old="add_relaxed(entry.resident_bytes, ~bytes + 1)",
        new="[&] { const uint64_t seen = load_relaxed(entry.resident_bytes);"
        " add_relaxed(entry.resident_bytes, ~bytes + 1); return seen; }()",
        caught_by=("reserve_two",),
    ),
    # -- segments -----------------------------------------------------------------------------------
    Mutant(
        name="re-assignment: CLAIMED blocks overlooked",
        header="segments.hpp",
        old="if (tag == BlockTag::free) continue;",
        new="if (PLANTED && tag == BlockTag::claimed) return true;"
        " if (tag == BlockTag::free) continue;",
        kind="text",
        caught_by=("change_claim",),
    ),
    Mutant(
        name="claim: segment not read again",
        header="segments.hpp",
        old="load_seq(view.segment(segment).state) == state",
        new="true",
        caught_by=("change_claim",),
    ),
    Mutant(
        name="claim: segment read again with acquire, not seq_cst",
        header="segments.hpp",
        old="load_seq(view.segment(segment).state) == state",
        new="load_acquire(view.segment(segment).state) == state",
        caught_by=("change_claim",),
    ),
    # -- free bits ----------------------------------------------------------------------------------
    Mutant(
        name="release: free bit set before the state",
        header="blocks.hpp",
        old="const uint64_t next = next_generation(block_generation(state));",
        new="or_seq(view.free_bits(record), uint64_t{1} << (record % 64));"
        " return cas_seq(block.state, state,"
        " block_state(BlockTag::free, 0, next_generation(block_generation(state))));",
        kind="before",
        caught_by=("free_bit",),
    ),
    Mutant(
        name="claim: free bit not put back",
        header="blocks.hpp",
        old="block_tag(load_seq(block.state)) == BlockTag::free",
        new="false",
        caught_by=("free_bit",),
    ),
    # -- the dead -----------------------------------------------------------------------------------
    Mutant(
        name="reap: a pinned block's eviction finished all the same",
        header="repair.hpp",
        old="if (!is_pinned(block)) {",
        new="if (PLANTED || !is_pinned(block)) {",
        kind="text",
        caught_by=("evict_reap_find",),
    ),
    Mutant(
        name="reap: index entry of a block put back not written again",
        header="repair.hpp",
        old="insert_entry(view, buckets, handle);",
        new="",
        kind="statement",
        caught_by=("evict_reap_find",),
    ),
    Mutant(
        name="reap: pins of the dead left",
        header="repair.hpp",
        old="clear_pin(view, slot, record);",
        new="",
        kind="statement",
        caught_by=("pin_reap", "two_reapers"),
    ),
    Mutant(
        name="reap: hints not rebuilt",
        header="repair.hpp",
        old="  rebuild_hints(view);\n",
        new="",
        kind="statement",
        caught_by=("evict_reap",),
    ),
    Mutant(
        name="rebuild: the touch read after the state, not before",
        header="repair.hpp",
        old="touch != 0 && cas_seq(view.touched(record), touch, 0)",
        new="load_acquire(view.touched(record)) != 0 &&"
        " cas_seq(view.touched(record), load_acquire(view.touched(record)), 0)",
        caught_by=("rebuild_claims",),
    ),
    Mutant(
        name="reap: a segment left as the dead was changing it",
        header="repair.hpp",
        old="reap_segment(view, slot, segment, done);",
        new="",
        kind="statement",
        caught_by=("change_reap",),
    ),
    # -- the journal --------------------------------------------------------------------------------
    Mutant(
        name="journal: entry opened first, not last",
        header="journal.hpp",
        old="store_release(entry.sequence, 0)",
        new="store_release(entry.sequence, sequence)",
        caught_by=("journal_two", "journal_lap"),
    ),
    Mutant(
        name="journal: entry not closed first",
        header="journal.hpp",
        old="store_release(entry.sequence, 0);",
        new="",
        kind="statement",
        caught_by=("journal_lap",),
    ),
    Mutant(
        name="journal: fields written with relaxed order",
        header="journal.hpp",
        old="store_release(entry.handle, handle)",
        new="store_relaxed(entry.handle, handle)",
        caught_by=("journal_lap",),
    ),
    Mutant(
        name="journal: sequence not read again",
        header="journal.hpp",
        old="load_acquire(entry.sequence) == sequence",
        new="true",
        caught_by=("journal_lap",),
    ),
)

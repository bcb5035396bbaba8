"""What can this engine load from this host, as routers hear of it? KV events, made from the region itself.

A router keeps an index of each engine's blocks from the events that the engine publishes. Here an engine can load what
any engine of its namespace stored, and loses what any process evicts. So events do not come from what this engine did:
the region's journal says which keys changed, whoever changed them; how each stands now, in memory and on SSD, is looked
up; and what differs from what was told is told. The journal is a hint: it may have turned before we came, and the dead
leave events out. So all that was told and all that is there is also gone through, a little in every step, always; and at
once (`_catch_up`) when the journal was overrun, at an attach, a purge, in another namespace, or when a spill file comes
into use or goes. That is why nobody is told AllBlocksCleared, which would also clear what the engine has on its device.

Bounded: each step reads at most `_EVENTS_MAX` events and looks at two slices. Called by the scheduler's thread, through
the manager. The price is a dict of what was told, about 150 bytes a block.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Final

from vllm.v1.kv_offload.base import Locality, Medium, OffloadingEvent, OffloadKey

from pegashm import _native
from pegashm.cache import Cache

__all__ = ["KvEvents"]

# Of one step: events read; keys told or looked up again; records looked at when nothing is to be caught up with.
_EVENTS_MAX: Final = 1024
_CATCH_UP_RECORDS: Final = 16384
_CATCH_UP_KEYS: Final = 512
_ROUND_RECORDS: Final = 256
_ROUND_KEYS: Final = 32
# An event that cannot be read for so long was left half written by a process that died.
_SETTLED_S: Final = 0.2
_MEDIA: Final = ((_native.TIER_MEMORY, Medium.CPU), (_native.TIER_SSD, Medium.STORAGE))
_TIER_BITS: Final = 2
_TIERS: Final = (1 << _TIER_BITS) - 1


class _Told:
    """Which tiers were told of each key; and the keys in a list, so that a slice of them can be gone through.

    A dict's word is `place in the list << 2 | tiers`. Whoever goes through the list from its end towards its start
    misses none that is there all the while: one that is taken out is replaced by the last.
    """

    def __init__(self) -> None:
        self._words: dict[OffloadKey, int] = {}
        self._keys: list[OffloadKey] = []

    def __len__(self) -> int:
        return len(self._keys)

    def tiers(self, key: OffloadKey) -> int:
        return self._words.get(key, 0) & _TIERS

    def set(self, key: OffloadKey, tiers: int) -> None:
        word = self._words.get(key)
        if word is not None and tiers:
            self._words[key] = word & ~_TIERS | tiers
        elif tiers:
            self._words[key] = len(self._keys) << _TIER_BITS | tiers
            self._keys.append(key)
        elif word is not None:
            self._take_out(key, word >> _TIER_BITS)

    def before(self, end: int, most: int) -> tuple[int, list[OffloadKey]]:
        """Up to `most` keys before place `end`, and where they begin."""
        end = min(end, len(self._keys))
        first = max(end - most, 0)
        return first, self._keys[first:end]

    def _take_out(self, key: OffloadKey, place: int) -> None:
        del self._words[key]
        last = self._keys.pop()
        if place < len(self._keys):
            self._keys[place] = last
            self._words[last] = place << _TIER_BITS | self._words[last] & _TIERS


class KvEvents:
    """Events of one engine's namespace. `ssd`: whether it would wait for blocks on SSD, so that they count.

    `follow` whenever the cache is another one, or in another namespace; then `take` in each step.
    """

    def __init__(self, *, ssd: bool) -> None:
        self._counted = _TIERS if ssd else _native.TIER_MEMORY
        self._cache: Cache | None = None
        self._told = _Told()
        self._read_to = 0
        self._settled = self._head_seen = 0
        self._seen_at = 0.0
        self._spill_signs = (0, 0)
        self._records = 0
        self._record = 0  # the next record to look at
        self._place = 0  # told keys before this place are still to be looked at
        self._is_catching_up = self._catch_up_again = False
        self._has_more = False
        self.overruns = 0

    @property
    def is_behind(self) -> bool:
        """Whether the last step had more to tell than one step tells. What happened since is for the next one: an
        engine without requests may sleep, however busy its neighbours are."""
        return self._is_catching_up or self._has_more

    def follow(self, cache: Cache | None) -> None:
        """Tell what this cache has from now on; what was told and is not there is told to be gone."""
        self._cache, self._has_more = cache, False
        if cache is not None:
            head, *spill = _native.residency_signs(cache.region)
            self._read_to = self._settled = self._head_seen = head
            self._spill_signs = (spill[0], spill[1])
            header = cache.region.header
            self._records = int(header["record_count"]) + int(header["spill_record_count"])
        self._catch_up()

    def take(self) -> list[OffloadingEvent]:
        """What changed since the last time, as far as one step may tell."""
        changed: dict[OffloadKey, int] = {}
        if self._cache is not None:
            self._judge(self._read_journal(self._cache), changed)
        self._judge(self._next_slice(), changed)
        return list(_events(changed))

    # -- which keys to look at -----------------------------------------------------------------------------

    def _read_journal(self, cache: Cache) -> Sequence[OffloadKey]:
        head, usable, started = _native.residency_signs(cache.region)
        if (usable, started) != self._spill_signs:
            self._spill_signs = (usable, started)
            self._catch_up()
        now = time.monotonic()
        if now >= self._seen_at + _SETTLED_S:
            self._settled, self._head_seen, self._seen_at = self._head_seen, head, now
        before = self._read_to
        self._read_to, overrun, _, keys = _native.changed_keys(
            cache.region, cache.namespace_id, before, self._settled, _EVENTS_MAX
        )
        self._has_more = self._read_to - before >= _EVENTS_MAX
        if overrun:
            self.overruns += 1
            self._catch_up()
        return [OffloadKey(key) for key in dict.fromkeys(keys)]

    def _catch_up(self) -> None:
        """Go through all of it at once; once more, when that is under way: not from the start again and again."""
        self._catch_up_again = self._is_catching_up
        if not self._is_catching_up:
            self._is_catching_up = True
            self._record, self._place = 0, len(self._told)

    def _next_slice(self) -> Sequence[OffloadKey]:
        """Some of what was told, and some of what is there: both again and again, from end to end."""
        records = _CATCH_UP_RECORDS if self._is_catching_up else _ROUND_RECORDS
        most = _CATCH_UP_KEYS if self._is_catching_up else _ROUND_KEYS
        self._place, told = self._told.before(self._place, most)
        there: list[bytes] = []
        if (cache := self._cache) is not None:
            self._record, there = _native.resident_keys(
                cache.region, cache.namespace_id, self._record, records, most
            )
        if self._place == 0 and (self._cache is None or self._record >= self._records):
            self._is_catching_up, self._catch_up_again = self._catch_up_again, False
            self._record, self._place = 0, len(self._told)
        return [*told, *(OffloadKey(key) for key in there)]

    # -- how they stand ------------------------------------------------------------------------------------

    def _judge(self, keys: Sequence[OffloadKey], changed: dict[OffloadKey, int]) -> None:
        """Compare with what was told, and note what to tell: `tiers << 2 | tiers told before` by key."""
        if not keys:
            return
        cache = self._cache
        if cache is None:
            found = [0] * len(keys)
        else:
            found = _native.residency(cache.region, keys, cache.namespace_id).tolist()
        for key, seen in zip(keys, found, strict=True):
            tiers = seen & self._counted
            told = self._told.tiers(key)
            if tiers != told:
                before = changed.get(key, told) & _TIERS
                changed[key] = tiers << _TIER_BITS | before
                self._told.set(key, tiers)


def _events(changed: dict[OffloadKey, int]) -> Iterable[OffloadingEvent]:
    """Stored before removed: a block that went from memory to SSD is at no moment nowhere."""
    for removed in (False, True):
        for tier, medium in _MEDIA:
            keys = [
                key
                for key, word in changed.items()
                if bool((word if removed else word >> _TIER_BITS) & tier)
                and not ((word >> _TIER_BITS if removed else word) & tier)
            ]
            if keys:
                yield OffloadingEvent(
                    keys, medium, removed=removed, locality=Locality.LOCAL, removal_expected=True
                )

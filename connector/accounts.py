"""What came of the blocks that a request asked for? Each of them once: a hit of some tier, or a miss for some reason.

A request asks for the keys of a KV group that follow the first one which vLLM looks up (those before it are in the engine's
own cache). The account is closed when it is known what came of them: when a load is prepared, when the request is
scheduled without one, or when it ends. Then

    asked = hits of memory, ssd, remote + misses by reason

holds exactly, here and in the control region, where all engines add up. What is loaded is a hit. Of what is not, the
first block of each group is looked into, and those behind it are misses for the same reason: each of a chain is useless
without those before it. That is one question a group to shared memory, and nothing on a lookup's path.

What cannot be told: a block evicted so long ago that nothing remembers it counts as never stored, and so does every
evicted one in an arena with `--eviction lru`, which remembers none. What a request looks up beyond that (a sliding window,
from its end) and does not load is in nobody's account. Used by the manager, in one thread.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from vllm.v1.kv_offload.base import OffloadKey

from pegashm.connector.stats import Tally

if TYPE_CHECKING:
    from pegashm.cache import Cache
    from pegashm.connector.requests import RequestState

__all__ = ["REASONS", "Accounts"]

# Why a block is a miss, as counters of the region have it: `missed_REASON`.
REASONS: Final = (
    "never_stored",
    "evicted",
    "other_namespace",
    "not_yet",
    "pinned_out",
    "tier_off",
    "timed_out",
    "checksum",
    "overloaded",
    "failed",
    "unused",
)
# What the arena says of a key that a lookup did not find.
_WHY: Final[Mapping[str, str]] = {
    "never_stored": "never_stored",
    "evicted": "evicted",
    "other_namespace": "other_namespace",
    "not_yet": "not_yet",
    "refused": "pinned_out",
    "damaged": "checksum",
    "present": "not_yet",  # it came between the lookup and now, or it was on its way out
    "spilled": "tier_off",
}
# What came of a block that the transport worker was asked for.
_REFUSED: Final[Mapping[str, str]] = {
    "missing": "evicted",
    "evicted": "evicted",
    "no_space": "pinned_out",
    "overloaded": "overloaded",
    "not_asked": "overloaded",
    "not_sent": "tier_off",
    "lost": "tier_off",
    "late": "timed_out",
    "failed": "failed",
    "damaged": "checksum",
}


class Accounts:
    """Of all requests of one engine. `needs_sums`: blocks without checksums are misses here."""

    def __init__(self, tally: Tally, *, needs_sums: bool) -> None:
        self._tally = tally
        self._needs_sums = needs_sums
        self._open: dict[str, RequestState] = {}

    def opened(self, request_id: str, state: RequestState, keys: list[OffloadKey]) -> None:
        """A request has asked for these keys of one group."""
        state.demanded.append(keys)
        self._open[request_id] = state

    def loaded(
        self, cache: Cache, request_id: str, state: RequestState, keys: Collection[OffloadKey]
    ) -> None:
        """It loads these; all else it asked for are misses."""
        if self._open.pop(request_id, None) is not None:
            self._close(cache, state, keys)

    def ended(self, cache: Cache | None, request_id: str) -> None:
        """It runs without a load, or it is over. Before its lookups of this step are forgotten."""
        state = self._open.pop(request_id, None)
        if state is not None and cache is not None:
            self._close(cache, state, ())

    def forget(self) -> None:
        """The arena is another one: nothing is known of what they asked for there."""
        self._open.clear()

    def _close(self, cache: Cache, state: RequestState, loaded: Collection[OffloadKey]) -> None:
        demanded, state.demanded = state.demanded, []
        ssd = remote = 0
        if loaded and state.promoted:
            remote = sum(key in state.promoted and key in state.remote for key in loaded)
            ssd = sum(key in state.promoted for key in loaded) - remote
        counts = {
            "hits_memory": len(loaded) - ssd - remote,
            "hits_ssd": ssd,
            "hits_remote": remote,
        }
        for group in demanded:
            for reason, amount in self._misses(cache, state, group, loaded):
                name = f"missed_{reason}"
                counts[name] = counts.get(name, 0) + amount
        asked = sum(counts.values())
        for name, amount in ({"asked": asked} | counts).items():
            if amount:
                cache.region.count(name, amount)
        self._tally.accounted(asked, counts)

    def _misses(
        self,
        cache: Cache,
        state: RequestState,
        group: Sequence[OffloadKey],
        loaded: Collection[OffloadKey],
    ) -> list[tuple[str, int]]:
        rest = _without(group, loaded)
        unused = 0
        while unused < len(rest) and rest[unused] in state.found:
            unused += 1
        misses = [("unused", unused)]
        if unused < len(rest):
            misses.append((self._reason(cache, state, rest[unused]), len(rest) - unused))
        return misses

    def _reason(self, cache: Cache, state: RequestState, key: OffloadKey) -> str:
        """Why one key was not found."""
        if (refused := state.refused.get(key)) is not None:
            return _REFUSED.get(refused, "failed")
        if key in state.spilled:
            return "timed_out"
        if key in state.unreached:
            return "timed_out" if state.waits else "tier_off"
        (why,) = cache.region.why_missing([key], cache.namespace_id)
        if why == "present" and self._needs_sums:
            return "checksum"
        return _WHY[why]


def _without(group: Sequence[OffloadKey], loaded: Collection[OffloadKey]) -> list[OffloadKey]:
    """The keys of a group that are not loaded, in order."""
    if not loaded:
        return list(group)
    among = loaded if isinstance(loaded, set | frozenset) else set(loaded)
    return [key for key in group if key not in among]

"""Which blocks does the cache have for this request? The scheduler's side, called in every engine step.

vLLM asks key by key; the first question of a step about a request is answered for all of its keys at once,
pinned, and the rest from what was found. Pins that no load takes over are dropped when the step ends.
Whatever goes wrong here is a miss: no exception reaches the engine, and nothing waits. A request may: what is on SSD or
on another host is a hit to be, until it is in memory or the request's deadline has passed (`promotions.py`); it keeps its pins meanwhile.

A claim is given back only when every worker has reported its part: a job that vLLM has forgotten (reset_cache) may
still be writing. Such claims are kept in `_stray` until then; if the engine dies first, they are reaped.
"""

import functools
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any, Final, ParamSpec, TypeVar

import numpy as np
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import OffloadingConnectorStats
from vllm.logger import init_logger
from vllm.v1.kv_offload.base import (
    LoadStoreSpec,
    Locality,
    LookupResult,
    Medium,
    OffloadingEvent,
    OffloadingManager,
    OffloadKey,
    PrepareStoreOutput,
    ReqContext,
    RequestOffloadingContext,
    ScheduleEndContext,
)
from vllm.v1.metrics.cache_hit_source import CacheHitSource

from pegashm import _native
from pegashm.cache import Cache, Mode
from pegashm.connector.accounts import Accounts
from pegashm.connector.attachment import Attachment
from pegashm.connector.events import KvEvents
from pegashm.connector.jobs import ArenaBlocks
from pegashm.connector.promotions import Promotions
from pegashm.connector.requests import (
    RequestState,
    keys_tail_to_head,
    request_state,
    wants,
)
from pegashm.connector.settings import SPILL_DEADLINE_MS
from pegashm.connector.stats import Tally
from pegashm.logs import tell
from pegashm.notices import CHUNK_TOO_LARGE, CONNECTOR_FAILED
from pegashm.payload_sums import Checksums, has_sums
from pegashm.trace.spool import Tracer

__all__ = ["PegaShmManager"]

# A request whose loads keep failing is computed instead; preemptions make a few loads normal.
_LOADS_MAX: Final = 8
# Claims that workers never report mean that they cannot reach the arena: stop claiming.
_STRAY_MAX: Final = 1024
_REAP_EVERY_S: Final = 1.0
# What is not in memory, and what vLLM calls the place where it is.
_ELSEWHERE: Final = (
    (_native.SPILLED, Medium.STORAGE, Locality.LOCAL),
    (_native.REMOTE, Medium.CPU, Locality.REMOTE),
)
_ELSEWHERE_OUTCOMES: Final = tuple(outcome for outcome, _, _ in _ELSEWHERE)

_P = ParamSpec("_P")
_T = TypeVar("_T")

logger = init_logger(f"vllm.{__name__}")  # under vLLM's own, whose handlers print it


def _miss_on_error(instead: Callable[_P, _T]) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """An error of ours must not become the engine's: log it, seldom, and answer what `instead` says."""

    def decorate(method: Callable[_P, _T]) -> Callable[_P, _T]:
        @functools.wraps(method)
        def guarded(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            try:
                return method(*args, **kwargs)
            except Exception:  # noqa: BLE001 - told, with the traceback
                name = method.__name__
                tell(
                    CONNECTOR_FAILED,
                    "%s failed, which costs hits only",
                    name,
                    subject=name,
                    to=logger,
                    trace=True,
                )
                return instead(*args, **kwargs)

        return guarded

    return decorate


def _no_events(self: Any) -> Iterable[OffloadingEvent]:
    return ()


class PegaShmManager(OffloadingManager):
    """vLLM's OffloadingManager on the shared index. `writers`: workers that copy each stored chunk."""

    def __init__(
        self,
        attachment: Attachment,
        *,
        mode: Mode,
        chunk_bytes: int,
        writers: int,
        events: bool,
        checksums: Checksums = Checksums.OFF,
        spill_deadline_ms: int = SPILL_DEADLINE_MS,
        events_while_idle: bool = False,
    ) -> None:
        self._attachment = attachment
        self._mode = mode
        self._chunk_bytes = chunk_bytes
        self._writers = writers
        self._checksums = checksums
        self._events: KvEvents | None = None
        if (
            events and mode is not Mode.SAVE_ONLY
        ):  # who never loads has nothing that a router could count on
            self._events = KvEvents(ssd=spill_deadline_ms > 0)
            self._events.follow(attachment.cache)
        self._events_while_idle = events_while_idle
        self._tally = Tally()
        self._promotions = Promotions(
            deadline_ms=0 if mode is Mode.SAVE_ONLY else spill_deadline_ms,
            chunk_bytes=chunk_bytes,
            tally=self._tally,
        )
        self._promotions.follow(attachment.cache)
        self._accounts = Accounts(self._tally, needs_sums=checksums is Checksums.REQUIRED)
        self._tracer = Tracer(attachment.arena_name, chunk_bytes)
        self._looked_up: dict[RequestState, None] = {}
        self._loading: dict[str, RequestState] = {}
        self._storing: dict[OffloadKey, int] = {}
        self._stray: list[int] = []
        self._reap_at = 0.0
        self._resets = 0

    @property
    def _cache(self) -> Cache | None:
        return self._attachment.cache

    # -- lookups and loads ---------------------------------------------------------------------------

    @_miss_on_error(lambda self, key, req_context: LookupResult.MISS)
    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        if self._cache is None or self._mode is Mode.SAVE_ONLY:
            return LookupResult.MISS
        state = request_state(req_context)
        if state.wait is not None:
            self._go_on_waiting(self._cache, state, req_context)
        if not state.knows(key):
            if not self._may_load(state, req_context):
                return LookupResult.MISS
            self._find(self._cache, key, state, req_context)
        if key in state.found:
            return LookupResult.HIT
        if key in state.spilled:
            self._promotions.want(req_context.req_id, state, key)
            return LookupResult.HIT_PENDING
        return LookupResult.MISS

    def _may_load(self, state: RequestState, context: ReqContext) -> bool:
        return (
            state.loads < _LOADS_MAX
            and wants(context, "load")
            and context.load_tier_filter.allows(Medium.CPU, Locality.LOCAL)
        )

    def _find(
        self, cache: Cache, key: OffloadKey, state: RequestState, context: ReqContext
    ) -> None:
        """Look up `key` and, in the same call, what vLLM will ask about next."""
        self._looked_up[state] = None
        if state.is_first_of_group(key):
            demanded = state.onward(key, context)
            cache.count_asked(demanded)
            self._accounts.opened(context.req_id, state, demanded)
            self._trace(key, state, context)
        if state.follows_a_lookup(key, context):  # a sliding window, from the end
            keys = [k for k in state.backward(key, context) if not state.is_hit(k)]
            handles, outcomes = cache.find(keys, pin=True)
        else:
            keys = [k for k in state.onward(key, context) if not state.is_hit(k)]
            handles, outcomes = cache.find_prefix(keys, pin=True)
        if self._checksums is Checksums.REQUIRED:
            self._leave_without_sums(cache, handles, outcomes)
        if state.wait is None:  # or they have been counted when it began
            self._tally.found(outcomes)
        to_be = self._hits_to_be(outcomes, state, context)
        for asked, handle, outcome in zip(keys, handles.tolist(), outcomes.tolist(), strict=False):
            if handle:
                state.found[asked] = handle
            elif outcome in to_be and asked not in state.refused:
                state.spilled.add(asked)
                (state.remote.add if outcome == _native.REMOTE else state.remote.discard)(asked)
            else:
                state.missing.add(asked)
                if outcome in _ELSEWHERE_OUTCOMES:
                    state.unreached.add(asked)

    def _trace(self, key: OffloadKey, state: RequestState, context: ReqContext) -> None:
        """For who records, if anybody does: the request's first KV group, whole, once."""
        if len(state.counted) == 1 and self._tracer.on:
            chain, tokens = state.chain(key, context)
            self._tracer.saw(
                chain,
                fingerprint=self._attachment.fingerprint,
                tokens=tokens,
                group=int.from_bytes(key[-4:], "big"),
            )

    def _hits_to_be(
        self, outcomes: Any, state: RequestState, context: ReqContext
    ) -> tuple[int, ...]:
        """Of blocks on SSD and of other hosts, which this request would wait for."""
        allows = context.load_tier_filter.allows
        to_be = tuple(
            outcome
            for outcome, medium, locality in _ELSEWHERE
            if outcome in outcomes and allows(medium, locality)
        )
        return to_be if to_be and self._promotions.may_wait(state) else ()

    def _go_on_waiting(self, cache: Cache, state: RequestState, context: ReqContext) -> None:
        """Look for what has been answered; or, after its deadline, for everything anew."""
        self._promotions.poll()
        if self._promotions.gave_up(context.req_id, state):
            self._drop(state)
        elif state.wait is not None and state.wait.back:
            keys = list(state.wait.back)
            handles, outcomes = cache.find(keys, pin=True)
            if self._checksums is Checksums.REQUIRED:
                self._leave_without_sums(cache, handles, outcomes)
            self._promotions.looked_again(state, keys, handles.tolist())

    def _leave_without_sums(self, cache: Cache, handles: Any, outcomes: Any) -> None:
        """A block that says nothing about its bytes is a miss to an engine that requires it."""
        without = (outcomes == _native.OK) & ~has_sums(cache.region, handles)
        cache.unpin(handles[without])
        handles[without] = 0
        outcomes[without] = _native.MISSING

    @_miss_on_error(lambda *args, **kwargs: CacheHitSource.HOST)
    def get_load_source(self, key: OffloadKey, req_context: ReqContext) -> CacheHitSource:
        state = request_state(req_context)
        if key not in state.promoted:
            return CacheHitSource.HOST
        return CacheHitSource.P2P if key in state.remote else CacheHitSource.DISK

    @_miss_on_error(lambda self, keys, req_context: _nothing(len(keys)))
    def prepare_load(self, keys: Collection[OffloadKey], req_context: ReqContext) -> LoadStoreSpec:
        """Turn this step's pins into a load. Every key was a HIT in this very step.

        If one is not pinned any more after all, its handle is 0: the worker reports that load as failed.
        """
        cache = self._cache
        state = request_state(req_context)
        state.loads += 1
        self._promotions.end(req_context.req_id)
        handles = np.array([state.found.pop(key, 0) for key in keys], dtype=np.uint64)
        state.loading.update(zip(keys, handles.tolist(), strict=True))
        self._loading[req_context.req_id] = state
        if cache is None:
            return _nothing(len(keys))
        promoted = sum(key in state.promoted for key in keys)
        remote = sum(key in state.promoted and key in state.remote for key in keys)
        self._tally.loaded(memory=len(handles) - promoted, ssd=promoted - remote, remote=remote)
        self._accounts.loaded(cache, req_context.req_id, state, keys)
        cache.count_served(len(handles))
        offsets, sizes = cache.locate(handles)
        handles[sizes != self._chunk_bytes] = 0
        cache.touch(handles[::-1])
        return _blocks(cache, handles, offsets)

    @_miss_on_error(lambda *args, **kwargs: None)
    def complete_load(self, keys: Collection[OffloadKey], req_context: ReqContext) -> None:
        state = request_state(req_context)
        handles = [state.loading.pop(key, 0) for key in keys]
        self._unpin(handles)
        if self._checksums is not Checksums.OFF:
            self._evict_damaged(handles)
        if not state.loading:
            self._loading.pop(req_context.req_id, None)

    @_miss_on_error(lambda *args, **kwargs: None)
    def on_request_finished(self, req_context: ReqContext) -> None:
        """Its blocks were used, in the engine's own cache too. Tail first: a block is useless when an
        earlier one of its chain is gone, so the head must count as used last."""
        state = request_state(req_context)
        self._accounts.ended(self._cache, req_context.req_id)
        if state.wait is not None:
            self._promotions.end(req_context.req_id)
            self._drop(state)
        if self._cache is not None:
            self._cache.touch_keys(keys_tail_to_head(req_context))

    # -- stores ----------------------------------------------------------------------------------------

    @_miss_on_error(lambda self, keys, req_context: PrepareStoreOutput([], _nothing(0), []))
    def prepare_store(
        self, keys: Collection[OffloadKey], req_context: ReqContext
    ) -> PrepareStoreOutput | None:
        """Claim a block for each key that is not there yet. What cannot be claimed is not stored."""
        cache = self._cache
        if (
            cache is None
            or self._mode is Mode.LOAD_ONLY
            or len(self._stray) > _STRAY_MAX
            or request_state(req_context).resets_before != self._resets
            or not wants(req_context, "store")
        ):
            return PrepareStoreOutput([], _nothing(0), [])
        wanted = list(keys)
        handles, outcomes = cache.claim(wanted, self._chunk_bytes)
        self._tally.claimed(outcomes)
        if _native.NO_SPACE in outcomes:
            self._reap(cache)
        if _native.TOO_LARGE in outcomes:
            self._tell_too_large(cache)
        ours = handles != 0
        stored = [key for key, is_ours in zip(wanted, ours.tolist(), strict=True) if is_ours]
        handles = handles[ours]
        offsets, _ = cache.locate(handles)
        self._storing.update(zip(stored, handles.tolist(), strict=True))
        return PrepareStoreOutput(stored, _blocks(cache, handles, offsets), [])

    @_miss_on_error(lambda *args, **kwargs: None)
    def complete_store(
        self, keys: Collection[OffloadKey], req_context: ReqContext, success: bool = True
    ) -> None:
        """Publish what every worker has written; the head of the chain counts as used last."""
        cache = self._cache
        ordered = sorted(keys, key=lambda key: req_context.get_offload_key_position(key) or 0)
        pairs = [(key, self._storing.pop(key)) for key in ordered if key in self._storing]
        if cache is None or not pairs:
            return
        handles = np.array([handle for _, handle in pairs], dtype=np.uint64)
        if not success:
            self._stray.extend(handles.tolist())
            return
        outcomes = cache.publish(handles, self._writers)
        self._stray.extend(handles[outcomes == _native.PENDING].tolist())

    # -- the step and the engine -----------------------------------------------------------------------

    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        request_state(req_context).resets_before = self._resets
        return RequestOffloadingContext()

    @_miss_on_error(lambda *args, **kwargs: None)
    def on_schedule_end(self, context: ScheduleEndContext) -> None:
        for request_id in context.new_req_ids:
            self._accounts.ended(self._cache, request_id)
            self._promotions.end(request_id)  # it runs: what it waited for is of no use to it
        self._promotions.end_step()
        for state in tuple(self._looked_up):
            if state.wait is None or not state.wait.is_asleep:
                self._drop(state)
        self._return_strays()
        if self._attachment.look():
            self._forget_handles()
            self._follow()

    def get_stats(self) -> OffloadingConnectorStats | None:
        return self._tally.take()

    @_miss_on_error(_no_events)
    def take_events(self) -> Iterable[OffloadingEvent]:
        return () if self._events is None else self._events.take()

    @_miss_on_error(lambda self: False)
    def has_pending_work(self) -> bool:
        """Whether vLLM shall go on stepping without requests: to tell routers what one step could not. An engine that
        sleeps tells nothing; one that shall not sleep says so in its settings."""
        events = self._events
        return events is not None and (self._events_while_idle or events.is_behind)

    @_miss_on_error(lambda *args, **kwargs: None)
    def reset_cache(self) -> None:
        """vLLM forgets its jobs and its blocks: ours stay for others, we move to a namespace of our own.

        Requests that are running now have seen the old weights: they store nothing from here on.
        """
        self._resets += 1
        try:
            self._promotions.end_all()
            for state in tuple(self._looked_up):
                self._drop(state)
            for state in self._loading.values():
                self._unpin(state.loading.values())
                state.loading.clear()
            self._loading.clear()
            self._stray.extend(self._storing.values())
            self._storing.clear()
        finally:
            self._attachment.enter_fresh_namespace()
            self._follow()

    @_miss_on_error(lambda *args, **kwargs: None)
    def shutdown(self) -> None:
        self._promotions.close()
        self._tracer.close()
        self._attachment.close()

    # -- inside ----------------------------------------------------------------------------------------

    def _follow(self) -> None:
        self._promotions.follow(self._cache)
        if self._events is not None:
            self._events.follow(self._cache)

    def _unpin(self, handles: Iterable[int]) -> None:
        if self._cache is not None:
            self._cache.unpin(np.fromiter(handles, dtype=np.uint64))

    def _drop(self, state: RequestState) -> None:
        """The step's lookups are over: what was found and not loaded is let go."""
        self._looked_up.pop(state, None)
        try:
            self._unpin(state.found.values())
        finally:
            state.clear()

    def _evict_damaged(self, loaded: list[int]) -> None:
        """Blocks that a worker of ours, or of anybody's, found damaged, now that our pins are dropped. One
        that others still hold stays, marked; whoever stores its key again evicts it."""
        if self._cache is None:
            return
        handles = np.array(loaded, dtype=np.uint64)
        damaged = _native.read_sums(self._cache.region, handles)[3]
        if damaged.any():
            self._cache.evict(handles[damaged])

    def _return_strays(self) -> None:
        """Give back forgotten claims that nobody can be writing any more."""
        if not self._stray or self._cache is None:
            return
        handles = np.array(self._stray, dtype=np.uint64)
        reported = _native.parts_total(self._cache.region, handles)
        over = ~_native.generations_hold(self._cache.region, handles)
        done = reported >= self._writers
        self._cache.abandon(handles[done])
        self._stray = handles[~(done | over)].tolist()

    def _forget_handles(self) -> None:
        """The arena is another one: handles of the old one mean nothing."""
        self._accounts.forget()
        for state in self._looked_up:
            state.clear()
        self._looked_up.clear()
        for state in self._loading.values():
            state.loading.clear()
        self._loading.clear()
        self._storing.clear()
        self._stray.clear()

    def _reap(self, cache: Cache) -> None:
        """Space may be held by the dead. Rarely, and one of them at a time: each costs a pass over the records."""
        now = time.monotonic()
        if now >= self._reap_at:
            self._reap_at = now + _REAP_EVERY_S
            cache.reap_dead(most=1)

    def _tell_too_large(self, cache: Cache) -> None:
        tell(
            CHUNK_TOO_LARGE,
            'nothing is stored: a chunk of this engine has %d bytes, arena "%s" can hold blocks of up '
            "to %d. Start it with a larger --segment-size, or the engine with smaller blocks_per_chunk",
            self._chunk_bytes,
            cache.name,
            cache.region.header["segment_bytes"],
            to=logger,
        )


def _blocks(cache: Cache, handles: Any, offsets: Any) -> ArenaBlocks:
    return ArenaBlocks(cache.region_id, cache.slot, cache.incarnation, handles, offsets)


def _nothing(count: int) -> ArenaBlocks:
    """Blocks of no region: a worker that gets them copies nothing and says that the load failed."""
    zeros = np.zeros(count, dtype=np.uint64)
    return ArenaBlocks(bytes(16), 0, 0, zeros, zeros)

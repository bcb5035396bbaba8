"""Which requests wait for blocks on SSD or on other hosts, for how long, and what came of it?

A block that a lookup finds there is a hit to be. The transport worker is asked for it once, for all blocks of a
request together, at the end of the step; until it answers, or the request's deadline passes, the request waits (vLLM
asks again in each step, and computes others meanwhile). What does not come is a miss to that request, for good.
Without a worker nobody is asked and nobody waits.

Nothing here blocks: a message is sent or it is not, answers are taken if they are there. How much is under way at
once is bounded by a share of the arena, since what is brought in pushes something out; requests beyond that wait
for their turn, within the same deadline. Called by the manager, in one thread.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from vllm.logger import init_logger
from vllm.v1.kv_offload.base import OffloadKey

from pegashm.connector.stats import Tally
from pegashm.logs import tell
from pegashm.notices import TRANSPORT_NOT_ASKED
from pegashm.transport.messages import KEYS_MAX, Answer, Done

if TYPE_CHECKING:
    from pegashm.cache import Cache
    from pegashm.connector.requests import RequestState
    from pegashm.transport.client import TransportClient

__all__ = ["Promotions", "Wait"]

# A request that waits again and again, since what came was evicted before it could be used, is computed.
_WAITS_MAX: Final = 4
# What waiting requests hold or ask for, as a share of the arena's blocks.
_SHARE: Final = 4
# A worker that has just been found is not connected yet: what cannot be sent then is sent in a later step.
_CONNECTING_S: Final = 1.0

logger = init_logger(f"vllm.{__name__}")  # under vLLM's own, whose handlers print it


@dataclass(slots=True, eq=False)
class Wait:
    """One request's wait. Its keys go from `wanted` to `asked` to `back`, and from there to what was found or missing.

    `wanted`: looked up by vLLM in this step, nobody was asked for them yet. `asked`: by ticket. `back`: answered, to be
    looked for in memory. `elsewhere`: of those, what somebody else was just writing there: look in each step. `cost`:
    blocks that it holds and asks for.
    """

    began: float
    deadline: float
    wanted: dict[OffloadKey, None] = field(default_factory=dict)
    asked: dict[int, list[OffloadKey]] = field(default_factory=dict)
    back: set[OffloadKey] = field(default_factory=set)
    elsewhere: set[OffloadKey] = field(default_factory=set)
    cost: int = 0

    @property
    def is_asleep(self) -> bool:
        """Whether what it found stays pinned between steps: more was asked for, and not looked for again yet."""
        return bool(self.asked or self.back or self.elsewhere)


class Promotions:
    """All waits of one engine. `chunk_bytes`: of each block; `deadline_ms` 0: never ask."""

    def __init__(self, *, deadline_ms: int, chunk_bytes: int, tally: Tally) -> None:
        self._deadline_ms = deadline_ms
        self._chunk_bytes = chunk_bytes
        self._tally = tally
        self._cache: Cache | None = None
        self._client: TransportClient | None = None
        self._alive = False
        self._alive_since = 0.0
        self._room = 1
        self._cost = 0
        self._waiting: dict[str, RequestState] = {}
        self._tickets: dict[int, RequestState] = {}
        self._polled = False

    # -- whom to ask -----------------------------------------------------------------------------------

    def follow(self, cache: Cache | None) -> None:
        """The engine uses this arena from now on. Whoever waits for another one waits no more."""
        if cache is self._cache:
            return
        self.close()
        self._cache = cache
        if cache is None or not self._deadline_ms:
            return
        header = cache.region.header
        if not (header["spill_record_count"] or header["remote_bucket_count"]):
            return
        self._room = max(cache.region.payload_bytes // self._chunk_bytes // _SHARE, 1)
        try:
            from pegashm.transport.client import TransportClient

            self._client = TransportClient(cache.arena)
        except (ImportError, OSError) as error:
            tell(
                TRANSPORT_NOT_ASKED,
                "blocks that are not in memory cannot be asked for, they are misses: %s",
                error,
                to=logger,
            )
            return
        self._look()

    def close(self) -> None:
        """Nobody waits any more and nobody is asked."""
        self.end_all()
        client, self._client, self._cache = self._client, None, None
        self._alive = False
        if client is not None:
            client.close()

    def _look(self) -> None:
        """Whether there is a worker; this also keeps up the connection to it."""
        alive = self._client is not None and self._client.alive
        if alive and not self._alive:
            self._alive_since = time.monotonic()
        self._alive = alive

    # -- one request -----------------------------------------------------------------------------------

    def may_wait(self, state: RequestState) -> bool:
        """Whether blocks on SSD and on other hosts are hits to be for this request."""
        if not self._alive:
            self._look()
        waits_before = state.waits - (state.wait is not None)
        return self._alive and not state.gave_up and waits_before < _WAITS_MAX

    def want(self, request_id: str, state: RequestState, key: OffloadKey) -> None:
        """vLLM has looked up a key that is not in memory. When it does so first, the deadline begins."""
        if state.wait is None:
            now = time.monotonic()
            state.wait = Wait(now, now + self._deadline_ms / 1e3)
            state.waits += 1
            self._waiting[request_id] = state
        if key not in state.asked:
            state.wait.wanted[key] = None

    def gave_up(self, request_id: str, state: RequestState) -> bool:
        """Whether its deadline has passed: what is not in memory now is a miss to it, for good."""
        wait = state.wait
        if wait is None or time.monotonic() < wait.deadline:
            return False
        state.gave_up = True
        late = [key for keys in wait.asked.values() for key in keys]
        self._count(state, "late", late)
        self._count(state, "late", wait.elsewhere)
        self._count(state, "not_asked", wait.wanted)
        self.end(request_id)
        return True

    def looked_again(self, state: RequestState, keys: list[OffloadKey], handles: list[int]) -> None:
        """What was looked for in memory after an answer, and found (its handle) or not (0)."""
        wait = state.wait
        if wait is None:
            return
        wait.back.clear()
        came: list[OffloadKey] = []
        lost: list[OffloadKey] = []
        for key, handle in zip(keys, handles, strict=True):
            if handle:
                came.append(key)
                state.spilled.discard(key)
                state.asked.discard(key)
                state.promoted.add(key)
                state.found[key] = handle
                wait.elsewhere.discard(key)
            elif key not in wait.elsewhere:
                lost.append(key)
        self._count(state, "ok", came)
        self._refuse(state, lost, "evicted")

    def end(self, request_id: str) -> None:
        """It waits no more: it has what there is, or it is over."""
        state = self._waiting.pop(request_id, None)
        if state is None or state.wait is None:
            return
        wait, state.wait = state.wait, None
        self._cost -= wait.cost
        for ticket in wait.asked:
            self._tickets.pop(ticket, None)
            if self._client is not None:
                self._client.forget(ticket)
        state.asked.clear()
        self._tally.waited(time.monotonic() - wait.began)

    def end_all(self) -> None:
        for request_id in tuple(self._waiting):
            self.end(request_id)

    # -- the step --------------------------------------------------------------------------------------

    def poll(self) -> None:
        """Take the answers that have come; once a step is enough."""
        if self._polled or not self._tickets:
            return
        self._polled = True
        self._listen()

    def _listen(self) -> None:
        if self._client is None:
            return
        for done in self._client.replies():
            state = self._tickets.pop(done.request_id, None)
            if state is not None and state.wait is not None:
                self._answered(state, state.wait, done)
        if self._client.error:
            tell(
                TRANSPORT_NOT_ASKED,
                "the transport worker did not understand this engine, or this engine it: blocks that are "
                "not in memory are misses. %s",
                self._client.error,
                subject=self._client.error,
                to=logger,
            )
            self._client.error = ""

    def end_step(self) -> None:
        """Ask for what this step has found elsewhere than in memory, and give up for those whose time is over."""
        self._look()
        self._listen()  # also when nobody waits: to hear that a worker is back that was silent
        self._polled = False
        for request_id, state in tuple(self._waiting.items()):
            wait = state.wait
            if wait is None or self.gave_up(request_id, state):
                continue
            if wait.wanted:
                self._ask(state, wait)
                wait.wanted.clear()  # what was not asked for is looked up again in the next step
            elif wait.cost and not wait.is_asleep:
                self.end(request_id)
            wait.back |= wait.elsewhere

    def _ask(self, state: RequestState, wait: Wait) -> None:
        wanted = list(wait.wanted)
        most = min(KEYS_MAX, 2 * self._room)  # half of the arena, for one that is alone
        self._refuse(state, wanted[most:], "not_asked")
        del wanted[most:]
        cost = len(state.found) + len(state.asked) + len(wanted)
        others = self._cost - wait.cost
        if others and others + cost > self._room:
            return  # its turn comes, or its deadline
        left_ms = int((wait.deadline - time.monotonic()) * 1e3)
        if left_ms <= 0 or self._client is None or self._cache is None:
            return
        ticket = self._client.promote(wanted, self._cache.namespace_id, left_ms)
        if ticket is None:
            self._look()
            if not self._alive or time.monotonic() > self._alive_since + _CONNECTING_S:
                self._refuse(state, wanted, "not_asked", reason="not_sent")
            return
        wait.asked[ticket] = wanted
        state.asked.update(wanted)
        self._tickets[ticket] = state
        self._cost += cost - wait.cost
        wait.cost = cost

    def _answered(self, state: RequestState, wait: Wait, done: Done) -> None:
        for key, outcome in zip(wait.asked.pop(done.request_id), done.outcomes, strict=True):
            answer = Answer(outcome)
            if answer is Answer.PENDING:
                wait.elsewhere.add(key)
            if answer in (Answer.OK, Answer.PENDING):
                wait.back.add(key)
            else:
                self._refuse(state, (key,), answer.name.lower())

    def _refuse(
        self, state: RequestState, keys: Iterable[OffloadKey], why: str, *, reason: str = ""
    ) -> None:
        """They are misses to this request from now on; `reason` where there is more to it than is counted."""
        refused = list(keys)
        state.spilled.difference_update(refused)
        state.missing.update(refused)
        state.refused.update(dict.fromkeys(refused, reason or why))
        self._count(state, why, refused)

    def _count(self, state: RequestState, result: str, keys: Collection[OffloadKey]) -> None:
        remote = sum(key in state.remote for key in keys)
        self._tally.promoted(result, ssd=len(keys) - remote, remote=remote)

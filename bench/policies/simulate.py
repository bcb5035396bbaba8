"""What does a policy come to on a workload? Hits of prefixes, of whole requests, tokens to be computed anew.

`simulate` runs a simulated cache over requests as engines make them; `replay_references` over the bare sequence of
blocks, as other simulators do it. `ceiling` is a cache without limits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Protocol

from bench.policies.adaptive import Adaptive
from bench.policies.base import Policy
from bench.policies.belady import Belady
from bench.policies.lru import Lru
from bench.policies.s3fifo import S3Fifo
from bench.policies.sieve import Sieve
from bench.policies.tinylfu import WTinyLfu
from bench.policies.workload import Request, Workload

__all__ = ["POLICIES", "Score", "Tally", "ceiling", "optimum", "replay_references", "simulate"]


class Make(Protocol):
    """A policy's class, or what acts like one."""

    def __call__(self, capacity: int) -> Policy: ...


POLICIES: Final[Mapping[str, Make]] = MappingProxyType(
    {
        "LRU": Lru,
        "S3-FIFO": S3Fifo,
        "SIEVE": Sieve,
        "W-TinyLFU": WTinyLfu,
        "adaptive": Adaptive,
    }
)


@dataclass(frozen=True, slots=True)
class Score:
    """What a workload came to.

    `request_rate`: of the requests that could have hit more than the first block of their chain, by what came before,
    how many did. A chain's first block is often the same for all, and says nothing.
    """

    requests: int
    blocks: int
    hits: int
    could_hit: int
    did_hit: int
    tokens: int
    tokens_computed: int
    evictions: int

    @property
    def block_rate(self) -> float:
        return self.hits / max(self.blocks, 1)

    @property
    def request_rate(self) -> float:
        return self.did_hit / max(self.could_hit, 1)


class Tally:
    """Adds requests up to a Score."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._requests = self._blocks = self._hits = self._could = self._did = 0
        self._tokens = self._computed = 0

    def add(self, request: Request, hits: int) -> None:
        chain = request.chain
        self._requests += 1
        self._blocks += len(chain)
        self._hits += hits
        if len(chain) > 1 and chain[1] in self._seen:
            self._could += 1
            self._did += hits > 1
        self._tokens += request.tokens
        self._computed += max(request.tokens - hits * request.block_tokens, 0)
        self._seen.update(chain)

    def score(self, evictions: int = 0) -> Score:
        return Score(
            self._requests, self._blocks, self._hits, self._could, self._did, self._tokens,
            self._computed, evictions,
        )  # fmt: skip


def simulate(policy: Policy, requests: Iterable[Request]) -> Score:
    tally = Tally()
    for request in requests:
        tally.add(request, policy.request(request.chain))
    return tally.score(policy.evictions)


def optimum(workload: Workload, capacity: int) -> Score:
    """Belady's."""
    return simulate(Belady(capacity, workload.chains), workload.requests)


def ceiling(workload: Workload) -> Score:
    """Without limits."""
    return simulate(Lru(max(workload.distinct, 1)), workload.requests)


def replay_references(policy: Policy, references: Sequence[int]) -> float:
    """The hit rate of single blocks, one after the other."""
    return sum(map(policy.access, references)) / max(len(references), 1)

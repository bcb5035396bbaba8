"""Who asks for what, and when? A recorded trace from a file, or one of two synthetic workloads.

A request is a chain of block ids: the same id is the same 512 tokens after the same prefix, and it is always reached by
the same ids before it. Files are as Mooncake publishes its traces, a JSON object a line with `timestamp` in ms,
`input_length` and `hash_ids`; or the same in a line of text (`traces/conversation-full.txt` says how). Neither says
which requests are turns of one session, so that is inferred, see `sessions`.

The synthetic ones have what the trace lacks. `scans`: chats, each with one of a few system prompts of 4 to 16 blocks,
while half of all blocks are long documents that are read once. `agents`: sessions of many short turns with tools
in between; each begins with the long prompt of its kind, every turn appends a little, and one session in four sends
out helpers that share its first turns. Seeded, so that they are the same everywhere.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "BLOCK_TOKENS",
    "CONVERSATION",
    "Request",
    "Workload",
    "agents",
    "blocks_of",
    "read_trace",
    "runs_of",
    "scans",
    "sessions",
]

BLOCK_TOKENS = 512
CONVERSATION = Path(__file__).parent.parent / "traces" / "conversation-full.txt"
SEED = 20261124

Chain = Sequence[int]


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt."""

    at_ms: int
    tokens: int
    chain: Chain
    block_tokens: int = BLOCK_TOKENS


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests in the order of their arrival."""

    name: str
    requests: Sequence[Request]

    @property
    def chains(self) -> list[Chain]:
        return [request.chain for request in self.requests]

    @property
    def references(self) -> int:
        return sum(len(request.chain) for request in self.requests)

    @property
    def distinct(self) -> int:
        """How many blocks an infinite cache would hold at the end."""
        return len({block for request in self.requests for block in request.chain})

    @property
    def digest(self) -> str:
        text = "\n".join(",".join(map(str, request.chain)) for request in self.requests)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def first(self, count: int) -> Workload:
        return Workload(self.name, self.requests[:count])


def read_trace(path: Path, most: int | None = None) -> Workload:
    """A file of either form; its name without ending is the workload's."""
    requests = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.startswith("#") or not line.strip():
                continue
            try:
                requests.append(_of_json(line) if line.startswith("{") else _of_text(line))
            except (ValueError, KeyError) as error:
                raise SystemExit(
                    f"{path.name}, line {number}: {error!r}; expected a JSON object with timestamp, input_length "
                    'and hash_ids, or "MS TOKENS RUNS" such as  27000 6955 0,14-27'
                ) from None
            if len(requests) == most:
                break
    return Workload(path.stem.removesuffix("-full").removesuffix("_trace"), requests)


def _of_json(line: str) -> Request:
    row = json.loads(line)
    return Request(
        int(row["timestamp"]),
        int(row["input_length"]),
        tuple(map(int, row["hash_ids"])),
        int(row.get("block_tokens", BLOCK_TOKENS)),  # what `pegashm trace record` writes says it
    )


def _of_text(line: str) -> Request:
    at_ms, tokens, runs = line.split()
    return Request(int(at_ms), int(tokens), blocks_of(runs))


def blocks_of(runs: str) -> tuple[int, ...]:
    """`0,14-16` -> (0, 14, 15, 16)."""
    blocks: list[int] = []
    for run in runs.split(","):
        first, _, last = run.partition("-")
        blocks += range(int(first), int(last or first) + 1)
    return tuple(blocks)


def runs_of(blocks: Chain) -> str:
    """(0, 14, 15, 16) -> `0,14-16`."""
    runs: list[str] = []
    start = 0
    for end in range(1, len(blocks) + 1):
        if end == len(blocks) or blocks[end] != blocks[end - 1] + 1:
            first, last = blocks[start], blocks[end - 1]
            runs.append(str(first) if first == last else f"{first}-{last}")
            start = end
    return ",".join(runs)


def sessions(requests: Sequence[Request]) -> list[int]:
    """For each request the number of its session, as far as blocks tell.

    A request goes on with the session of an earlier one when it repeats that one's chain to its end, or but for the last
    block, which may have been part of a block then. Who shares less has only the beginning in common: a new session.
    """
    owner: dict[int, int] = {}  # block -> the session that came with it
    below: dict[int, int] = {}  # block -> how many blocks its longest known continuation has
    numbers = []
    for number, request in enumerate(requests):
        chain = request.chain
        known = next((i for i, block in enumerate(chain) if block not in owner), len(chain))
        goes_on = known > 0 and below[chain[known - 1]] <= 1
        session = owner[chain[known - 1]] if goes_on else number
        for depth, block in enumerate(chain):
            owner.setdefault(block, session)
            below[block] = max(below.get(block, 0), len(chain) - depth - 1)
        numbers.append(session)
    return numbers


# -- synthetic -------------------------------------------------------------------------------------


def scans(count: int, seed: int = SEED) -> Workload:
    """Chats beside long documents that nobody asks for again."""
    chance = random.Random(seed)
    ids = itertools.count()
    prompts = [_take(ids, chance.randint(4, 16)) for _ in range(12)]
    popular = [1 / (rank + 1) for rank in range(len(prompts))]
    arrivals: list[tuple[float, int, list[int], int]] = []  # when, tie, blocks so far, turns left
    ties = itertools.count()
    requests: list[Request] = []
    now = 0.0
    scanned = chatted = 0
    while len(requests) < count:
        now += chance.expovariate(1 / 300)
        if scanned < chatted:
            document = _take(ids, chance.randint(40, 160))
            scanned += len(document)
            requests.append(_request(now, document, chance))
            continue
        if arrivals and arrivals[0][0] <= now:
            _, _, chain, turns = heapq.heappop(arrivals)
        else:
            chain = list(chance.choices(prompts, popular)[0])
            turns = _geometric(chance, 4)
        chain = chain + _take(ids, chance.randint(1, 6))
        chatted += len(chain)
        requests.append(_request(now, chain, chance))
        if turns > 1:
            pause = chance.lognormvariate(10.6, 1.0)  # 40 s in the middle
            heapq.heappush(arrivals, (now + pause, next(ties), chain, turns - 1))
    return Workload("scans", requests)


def agents(count: int, seed: int = SEED + 1) -> Workload:
    """Sessions of many turns, all of a kind beginning alike, some with helpers."""
    chance = random.Random(seed)
    ids = itertools.count()
    kinds = [_take(ids, chance.randint(8, 24)) for _ in range(6)]
    arrivals: list[tuple[float, int, list[int], int]] = []
    ties = itertools.count()
    requests: list[Request] = []
    began = 0.0
    while len(requests) < count:
        if not arrivals or arrivals[0][0] > began:
            chain = list(chance.choice(kinds)) + _take(ids, chance.randint(1, 8))
            heapq.heappush(arrivals, (began, next(ties), chain, _geometric(chance, 12)))
            began += chance.expovariate(1 / 6000)
        now, _, chain, turns = heapq.heappop(arrivals)
        requests.append(_request(now, chain, chance))
        if turns == 1:
            continue
        if chance.random() < 0.02:
            for _ in range(chance.randint(2, 5)):
                helper = chain + _take(ids, chance.randint(1, 3))
                arrive = now + chance.expovariate(1 / 2000)
                heapq.heappush(arrivals, (arrive, next(ties), helper, _geometric(chance, 4)))
        # Mostly a tool answers, at times a person.
        pause = (
            chance.lognormvariate(8.3, 0.8)
            if chance.random() < 0.85
            else chance.lognormvariate(11.5, 1)
        )
        grown = chain + _take(ids, chance.randint(1, 4))
        heapq.heappush(arrivals, (now + pause, next(ties), grown, turns - 1))
    return Workload("agents", requests)


def _take(ids: Iterator[int], count: int) -> list[int]:
    return list(itertools.islice(ids, count))


def _geometric(chance: random.Random, mean: float) -> int:
    """1 or more."""
    turns = 1
    while chance.random() > 1 / mean:
        turns += 1
    return turns


def _request(at: float, chain: list[int], chance: random.Random) -> Request:
    return Request(
        int(at), len(chain) * BLOCK_TOKENS - chance.randrange(BLOCK_TOKENS), tuple(chain)
    )

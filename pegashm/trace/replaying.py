"""What would another size have done with this traffic? A trace through the real index and eviction, without any payload.

For each budget a control region of that many blocks is made in private memory; nothing is copied, so that the payload takes none, and a terabyte can be tried on a laptop. Each
request finds its prefix, uses what is there, and stores the rest, as an engine does: same core, same eviction. One engine, one request after the other; a request that in truth came
while another was being served may see a little more here. `bench/replay.py` has several engine processes, Belady's optimum and plots.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from pegashm import _native
from pegashm.errors import ConfigError
from pegashm.units import format_bytes

__all__ = ["Outcome", "Request", "Trace", "ceiling", "read_trace", "replay"]

BLOCK_TOKENS_DEFAULT: Final = 512  # of traces that do not say it, as Mooncake's
_BLOCK: Final = 4096  # a block of the private region, whatever the real one takes
_SEGMENT_BLOCKS: Final = 64
_RECORDS_MOST: Final = 1 << 24
_NAMESPACE: Final = b"trace replay".ljust(32, b"\0")


@dataclass(frozen=True, slots=True)
class Request:
    tokens: int
    block_tokens: int
    chain: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Trace:
    """`block_bytes` 0: the trace does not say how large a block is."""

    requests: Sequence[Request]
    block_bytes: int

    @property
    def blocks(self) -> int:
        return sum(len(request.chain) for request in self.requests)

    @property
    def distinct(self) -> int:
        return len({block for request in self.requests for block in request.chain})


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One budget. `request_rate`: of requests whose second block had been asked for before, how many hit it; `computed`: share of tokens."""

    budget_bytes: int
    capacity: int
    block_rate: float
    request_rate: float
    computed: float
    evictions: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def read_trace(path: str) -> Trace:
    """A file of JSON lines; # begins a comment. ConfigError says which line is none."""
    requests, sizes = [], set[int]()
    try:
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.startswith("#") or not line.strip():
                    continue
                try:
                    row = json.loads(line)
                    chain = tuple(int(block) for block in row["hash_ids"])
                    tokens = int(row["input_length"])
                    block_tokens = int(row.get("block_tokens", BLOCK_TOKENS_DEFAULT))
                    sizes.add(int(row.get("block_bytes", 0)))
                except (ValueError, KeyError, TypeError) as error:
                    raise ConfigError(
                        f"{path}, line {number}: {error!r}; expected a JSON object with hash_ids and input_length"
                    ) from None
                if chain:
                    requests.append(Request(tokens, block_tokens, chain))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    if not requests:
        raise ConfigError(f"{path} has no requests")
    return Trace(requests, sizes.pop() if len(sizes) == 1 else max(sizes, default=0))


def replay(
    trace: Trace,
    budget_bytes: int,
    block_bytes: int,
    *,
    eviction: str = "adaptive",
    tick: Callable[[int], None] = lambda done: None,
) -> Outcome:
    """The trace through a cache of that many bytes. ConfigError for one that cannot be."""
    segments = budget_bytes // block_bytes // _SEGMENT_BLOCKS
    if not segments:
        raise ConfigError(
            f"a budget of {format_bytes(budget_bytes)} is less than {_SEGMENT_BLOCKS} blocks of {format_bytes(block_bytes)}"
        )
    if segments * _SEGMENT_BLOCKS > _RECORDS_MOST:
        raise ConfigError(
            f"a budget of {format_bytes(budget_bytes)} is more than {_RECORDS_MOST} blocks of {format_bytes(block_bytes)}"
        )
    with _Private(segments, eviction) as cache:
        hits, tally = [], _Tally()
        for done, request in enumerate(trace.requests, 1):
            hits.append(cache.serve(request.chain))
            tally.add(request, hits[-1])
            if done % 64 == 0:
                tick(done)
        return tally.outcome(budget_bytes, segments * _SEGMENT_BLOCKS, cache.evictions)


def ceiling(trace: Trace) -> Outcome:
    """A cache that forgets nothing."""
    seen: set[int] = set()
    tally = _Tally()
    for request in trace.requests:
        hits = next(
            (place for place, block in enumerate(request.chain) if block not in seen),
            len(request.chain),
        )
        tally.add(request, hits)
        seen.update(request.chain)
    return tally.outcome(0, len(seen), 0)


class _Tally:
    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._blocks = self._hits = self._could = self._did = self._tokens = self._computed = 0

    def add(self, request: Request, hits: int) -> None:
        chain = request.chain
        self._blocks += len(chain)
        self._hits += hits
        if len(chain) > 1 and chain[1] in self._seen:
            self._could += 1
            self._did += hits > 1
        self._tokens += request.tokens
        self._computed += max(request.tokens - hits * request.block_tokens, 0)
        self._seen.update(chain)

    def outcome(self, budget_bytes: int, capacity: int, evictions: int) -> Outcome:
        return Outcome(
            budget_bytes=budget_bytes,
            capacity=capacity,
            block_rate=self._hits / max(self._blocks, 1),
            request_rate=self._did / max(self._could, 1),
            computed=self._computed / max(self._tokens, 1),
            evictions=evictions,
        )


class _Private:
    """A region that nobody else can see, and its one client."""

    def __init__(self, segments: int, eviction: str) -> None:
        shape: dict[str, Any] = {
            "segment_bytes": _SEGMENT_BLOCKS * _BLOCK,
            "block_bytes_min": _BLOCK,
            "segments_per_arena": [segments],
        }
        plan = _native.plan_region(**shape)
        self._control, self._payload = (
            os.memfd_create(name, os.MFD_CLOEXEC) for name in ("control", "payload")
        )
        os.ftruncate(self._control, plan["control_bytes"])
        os.ftruncate(
            self._payload, plan["payload_bytes"]
        )  # never touched, so that it takes nothing
        self._format(shape, plan["control_bytes"])
        self._region = _native.Region(self._control, [self._payload])
        self._region.set_segments_ready(segments)
        self._region.set_eviction(eviction)
        self._id = self._region.register_namespace(_NAMESPACE, label="trace replay", now_ns=1)
        incarnation = self._region.attach_client(
            0, pid=os.getpid(), started_at=0, now_ns=1, namespace_id=self._id, mode=0, engine_id=b"", label="trace replay"
        )  # fmt: skip
        self._client = _native.Client(self._region, 0, incarnation)

    def _format(self, shape: dict[str, Any], nbytes: int) -> None:
        import mmap

        with mmap.mmap(self._control, nbytes) as control:
            _native.format_region(
                control,
                **shape,
                region_id=bytes(16),
                arena_paths=["private"],
                numa_nodes=[-1],
                page_bytes=4096,
                created_at_ns=1,
            )

    @property
    def evictions(self) -> int:
        return next(
            int(row["value"]) for row in self._region.counters() if row["key"] == "evictions"
        )

    def serve(self, chain: Sequence[int]) -> int:
        """One request as an engine serves it; how many blocks of its prefix were there."""
        keys = [_key(block) for block in chain]
        client, namespace = self._client, self._id
        found, outcomes = client.find_prefix(keys, namespace, pin=True)
        misses = np.flatnonzero(outcomes != _native.OK)
        hits = int(misses[0]) if len(misses) else len(outcomes)
        client.touch(found[:hits][::-1])
        handles, _ = client.claim(keys[hits:], namespace, _BLOCK)
        client.publish(handles[handles != 0])
        client.unpin(found)
        client.touch_keys(keys[::-1], namespace)
        return hits

    def __enter__(self) -> _Private:  # noqa: PYI034 - typing.Self came with Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        del self._client
        self._region.close()
        os.close(self._control)
        os.close(self._payload)


def _key(block: int) -> bytes:
    return hashlib.blake2b(block.to_bytes(8, "little"), digest_size=32).digest() + bytes(4)

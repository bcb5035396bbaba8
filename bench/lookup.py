"""What does it cost to ask for 1,000 keys at once, among ten thousand to ten million blocks?

Through `Client.find` on a real region, by one process and by two at the same time, each in turn with hits and
misses, cold (caches overwritten, other keys each time) and hot (the same keys again). In the same rounds, in the same
processes: a Python dict of the same keys; Redis over a unix socket, by redis-py with hiredis (pipelined EXISTS) and by
bytes made beforehand; and the memory's own limit, two independent random cache lines for each key in tables of
the same size (a bucket and a record for a hit, two buckets for a miss). With the control region on 4 KiB pages and, marked
2M, on 2 MiB pages, as in a /dev/shm mounted with huge=advise; the limit's tables are on pages of the same size, and what 4 KiB pages would
allow stands beside. Rivals are left out at ten million (their tables would not fit here). lookup_worker.py does the measuring.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, final

from bench import harness, memory
from bench.lookup_keys import KeySet
from bench.lookup_worker import Setup
from bench.redis_server import INSTALL_HINT, fill, redis_server
from bench.sparse_region import SparseRegion

__all__ = ["measure"]

BATCH_KEYS = 1000
MISS_KEYS = 100_000
QUESTION = f"What does a lookup of {BATCH_KEYS:,} keys in one call cost, and how far is it from the memory's limit?"
NOT_SHOWN = (
    "claims and evictions going on meanwhile, more than two processes, several NUMA nodes",
    "find_prefix, which stops at the first miss; touch and locate, which a connector calls for hits only",
    "hot figures of rivals include their whole path (client, socket, server); a dict is private to one process",
)
# Records per segment, so that each size is an almost full region.
SEGMENT_BLOCKS = {10_000: 1_024, 100_000: 4_096, 1_000_000: 16_384, 10_000_000: 65_536}
RIVALS_UP_TO = 1_000_000
CONTROL_BYTES_MAX = 6 << 30  # of ten million blocks of 4 KiB, with room to spare


@dataclass(frozen=True, slots=True)
class Case:
    """How many blocks, and whether the control region has 2 MiB pages."""

    blocks: int
    huge: bool

    @property
    def with_rivals(self) -> bool:
        return self.blocks <= RIVALS_UP_TO and not self.huge


CASES = (
    Case(10_000, False), Case(100_000, False), Case(1_000_000, False), Case(10_000_000, False),
    Case(1_000_000, True), Case(10_000_000, True),
)  # fmt: skip


def measure(options: harness.Options) -> harness.Findings:
    cases = options.pick(CASES, CASES[:3], CASES[:1])
    rounds = options.pick(7, 2, 1)
    batches = {True: options.pick(15, 7, 2), False: options.pick(60, 25, 3)}  # by cold
    notes: list[str] = []
    rows: list[dict[str, Any]] = []
    digest = hashlib.sha256()
    with contextlib.ExitStack() as stack:
        redis_path = stack.enter_context(redis_server())
        folder = None
        if any(case.huge for case in cases):
            folder = stack.enter_context(memory.huge_tmpfs(CONTROL_BYTES_MAX))
        if redis_path is None:
            notes.append(INSTALL_HINT)
        for case in cases:
            if case.huge and folder is None:
                notes.append("2 MiB pages left out: a tmpfs of its own needs root")
                continue
            rows += measure_case(
                case, folder if case.huge else None, redis_path, rounds, batches, digest, notes
            )
    figures = {"batch_keys": BATCH_KEYS, "rounds": rounds, **headline(rows), "results": rows}
    tables = [summary(rows, processes) for processes in (1, 2)]
    return harness.Findings(tables, figures, digest.hexdigest()[:16], notes)


def measure_case(
    case: Case,
    folder: str | None,
    redis_path: str | None,
    rounds: int,
    batches: Mapping[bool, int],
    digest: Any,
    notes: list[str],
) -> list[dict[str, Any]]:
    """A region of that size, filled, and all that is asked of it."""
    rows: list[dict[str, Any]] = []
    with SparseRegion(case.blocks, SEGMENT_BLOCKS[case.blocks], folder=folder) as sparse:
        harness.progress(f"{case}: filling")
        keys = KeySet(case.blocks, harness.SEED).all()
        published = sparse.fill(keys)
        if published < case.blocks:
            notes.append(
                f"{case.blocks - published} of {case.blocks} keys found no room in the index"
            )
        if not case.with_rivals:
            redis_path = None
        if redis_path is not None:
            fill(redis_path, keys)
        del keys
        with Workers(sparse, case, redis_path) as workers:
            for processes in (1, 2):
                harness.progress(f"{case}: {processes} process(es)")
                rows += measure_size(workers, case, processes, rounds, batches, digest)
    return rows


def measure_size(
    workers: Workers,
    case: Case,
    processes: int,
    rounds: int,
    batches: Mapping[bool, int],
    digest: Any,
) -> list[dict[str, Any]]:
    """All sections for one size and number of processes: a row for each of hit/miss, cold/hot."""
    conditions = list(itertools.product((True, False), (True, False)))
    samples: dict[tuple[bool, bool, str], list[float]] = {}

    def section(hit: bool, cold: bool, contender: str) -> float:
        answers = workers.ask(
            processes, contender=contender, hit=hit, cold=cold, batches=batches[cold]
        )
        taken = [ns / BATCH_KEYS for answer in answers for ns in answer["ns"]]
        samples.setdefault((hit, cold, contender), []).extend(taken)
        digest.update(answers[0]["answers"].encode())
        return harness.median(taken)

    asked = {
        f"{hit} {cold} {contender}": lambda h=hit, c=cold, who=contender: section(h, c, who)
        for hit, cold in conditions
        for contender in workers.contenders
        if hit or contender != "find, pin"  # there is nothing to pin in a miss
    }
    harness.interleave(rounds, asked)
    rows = []
    for hit, cold in conditions:
        p50 = {
            who: round(harness.percentile(samples[hit, cold, who], 50), 2)
            for who in workers.contenders
            if (hit, cold, who) in samples
        }
        p99 = {who: round(harness.percentile(samples[hit, cold, who], 99), 2) for who in p50}
        rows.append(
            {
                "blocks": case.blocks,
                "huge": case.huge,
                "processes": processes,
                "keys": "hits" if hit else "misses",
                "caches": "cold" if cold else "hot",
                "ns_per_key_p50": p50,
                "ns_per_key_p99": p99,
                "times_limit": round(p50["find"] / p50["memory"], 2),
                "dict_times": round(p50["dict"] / p50["find"], 2) if "dict" in p50 else None,
                "redis_times": round(p50["redis"] / p50["find"], 1) if "redis" in p50 else None,
            }
        )
    return rows


@final
class Workers:
    """Two measuring processes on one region; a section runs in the first or in both at once."""

    def __init__(self, sparse: SparseRegion, case: Case, redis_path: str | None) -> None:
        self.children = [self._start(sparse, case, redis_path, slot) for slot in (1, 2)]
        self.contenders = self._greet()

    def _greet(self) -> list[str]:
        """Wait until both are set up; the contenders they have."""
        greetings = [self._answer(child) for child in self.children]
        contenders: list[str] = greetings[0]["contenders"]
        return contenders

    def _start(
        self, sparse: SparseRegion, case: Case, redis_path: str | None, slot: int
    ) -> subprocess.Popen[str]:
        setup = Setup(
            control_fd=sparse.control_fd,
            arena_fd=sparse.arena_fd,
            slot=slot,
            incarnation=sparse.attach(slot),
            namespace_id=sparse.namespace_id,
            bucket_count=sparse.plan["bucket_count"],
            record_count=sparse.plan["record_count"],
            key_count=case.blocks,
            key_seed=harness.SEED,
            miss_count=MISS_KEYS,
            miss_seed=harness.SEED + 1,
            batch_keys=BATCH_KEYS,
            redis_path=redis_path,
            huge=case.huge,
            with_dict=case.with_rivals,
        )
        return subprocess.Popen(
            [sys.executable, "-m", "bench.lookup_worker", json.dumps(asdict(setup))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=(sparse.control_fd, sparse.arena_fd),
        )

    def ask(self, processes: int, **section: Any) -> list[dict[str, Any]]:
        """Have so many processes measure the same section at the same time."""
        asked = self.children[:processes]
        for child in asked:
            assert child.stdin is not None
            child.stdin.write(json.dumps(section) + "\n")
            child.stdin.flush()
        return [self._answer(child) for child in asked]

    def _answer(self, child: subprocess.Popen[str]) -> dict[str, Any]:
        assert child.stdout is not None
        line = child.stdout.readline()
        if not line:
            raise SystemExit("a lookup worker ended early; its error stands above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for child in self.children:
            with contextlib.suppress(OSError):
                child.terminate()
            child.communicate()


def headline(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures to quote: one process, a million blocks (or the most that rivals were asked for)."""
    largest = max(row["blocks"] for row in rows if row["dict_times"] is not None)
    quoted: dict[str, Any] = {}
    for row in rows:
        if row["processes"] != 1 or row["blocks"] != largest:
            continue
        name = f"{row['caches']}_{row['keys']}{'_huge' if row['huge'] else ''}"
        quoted[name] = {
            "blocks": largest,
            "us_per_1000": round(row["ns_per_key_p50"]["find"], 2),
            "times_limit": row["times_limit"],
            "dict_times": row["dict_times"],
            "redis_times": row["redis_times"],
        }
    # Beside what independent lines on small pages cost, and a dict, in the same run.
    for row in rows:
        small = quoted.get(f"{row['caches']}_{row['keys']}")
        huge = quoted.get(f"{row['caches']}_{row['keys']}_huge")
        if (
            row["processes"] == 1
            and row["blocks"] == largest
            and not row["huge"]
            and huge
            and small
        ):
            p50 = row["ns_per_key_p50"]
            huge["times_limit_of_small_pages"] = round(huge["us_per_1000"] / p50["memory"], 2)
            huge["dict_times"] = round(p50["dict"] / huge["us_per_1000"], 2)
    return quoted


def summary(rows: Sequence[Mapping[str, Any]], processes: int) -> Any:
    names = list(rows[0]["ns_per_key_p50"])

    def cells(row: Mapping[str, Any]) -> Iterator[object]:
        pages = " 2M" if row["huge"] else ""
        yield f"{row['blocks']:>10,}{pages} {row['caches']:4} {row['keys']}"
        for name in names:
            p50, p99 = row["ns_per_key_p50"].get(name), row["ns_per_key_p99"].get(name)
            yield "-" if p50 is None else f"{p50:,.1f} / {p99:,.1f}"
        yield f"{row['times_limit']:.2f}"
        yield f"{row['dict_times']:.1f}" if row["dict_times"] else "-"
        yield row["redis_times"] or "-"

    return harness.table(
        f"ns per key, p50 / p99 over batches of {BATCH_KEYS:,}; {processes} process(es) at a time",
        ["blocks", *names, "find / memory", "dict / find", "redis / find"],
        [list(cells(row)) for row in rows if row["processes"] == processes],
    )


if __name__ == "__main__":
    harness.run("lookup", QUESTION, not_shown=NOT_SHOWN, measure=measure)

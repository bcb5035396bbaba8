"""What do claim, publish, pin, touch, unpin and evict cost a block, alone and with others at it?

Through the native client on a real region of 4 KiB blocks without payload (`sparse_region`), batches of 256 blocks, by 1, 2 and
16 processes at the same time, each with keys of its own. Once in an arena with room, once in a full one, where each claim evicts
the block that has not been used for longest: sixteen processes then fight for the same victims. More processes than cores share
the cores: the figure to compare is blocks a second of all together.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from bench import harness
from bench.lookup_keys import KeySet
from bench.operations_worker import BATCH
from bench.sparse_region import SparseRegion

__all__ = ["measure"]

QUESTION = (
    "What do claim, publish, pin, touch, unpin and evict cost a block, alone and with others?"
)
NOT_SHOWN = (
    "more cores than two, and several NUMA nodes",
    "copies and checksums of payload: bench.copy, bench.checksum",
)
PROCESSES = (1, 2, 16)
SEGMENT_BLOCKS = 4096
KINDS = {"room": False, "full": True}


def measure(options: harness.Options) -> harness.Findings:
    size = options.pick(1_000_000, 200_000, 50_000)
    rounds = options.pick(7, 3, 1)
    seconds = options.pick(1.0, 0.5, 0.1)
    counts = options.pick(PROCESSES, PROCESSES, (1, 2))
    rows = []
    blocks = 0
    for kind, full in KINDS.items():
        harness.progress(f"{size} blocks, {kind}")
        with SparseRegion(size, SEGMENT_BLOCKS) as sparse:
            there = sparse.plan["record_count"] if full else size // 2
            published = sparse.fill(KeySet(there, harness.SEED).all())
            if published != there:
                raise AssertionError(f"{published} of {there} blocks found room")
            with workers(sparse, max(counts)) as children:
                for count in counts:
                    samples = [
                        measured(children[:count], seconds, full=full) for _ in range(rounds)
                    ]
                    rows += rows_of(kind, count, samples)
                    blocks += sum(answer["blocks"] for sample in samples for answer in sample)
            tally = sparse.region.tally()
            if tally["claimed"] or tally["evicting"]:
                raise AssertionError(f"something was left: {tally}")
    figures = {
        "blocks": size,
        "rounds": rounds,
        "alone_ns": {row["operation"]: row["p50_ns"] for row in rows if row["processes"] == 1},
        "results": rows,
    }
    return harness.Findings([table(rows)], figures, f"{blocks > 0} {len(rows)} rows")


def rows_of(kind: str, count: int, samples: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    together = harness.median(
        [sum(answer["blocks"] / answer["seconds"] for answer in sample) for sample in samples]
    )
    refused, done = (
        sum(answer[what] for sample in samples for answer in sample)
        for what in ("refused", "blocks")
    )
    rows = []
    for operation in samples[0][0]["ns"]:
        taken = [ns for sample in samples for answer in sample for ns in answer["ns"][operation]]
        rows.append(
            {
                "arena": kind,
                "processes": count,
                "operation": operation,
                "p50_ns": round(harness.percentile(taken, 50), 1),
                "p99_ns": round(harness.percentile(taken, 99), 1),
                "million_blocks_s": round(together / 1e6, 3),
                "refused_share": round(refused / (refused + done), 6),
            }
        )
    return rows


def measured(children: Sequence[subprocess.Popen[str]], seconds: float, *, full: bool) -> list[Any]:
    """All of these at the same time."""
    for child in children:
        assert child.stdin is not None
        child.stdin.write(json.dumps({"seconds": seconds, "full": full}) + "\n")
        child.stdin.flush()
    return [heard(child) for child in children]


@contextlib.contextmanager
def workers(sparse: SparseRegion, count: int) -> Iterator[list[subprocess.Popen[str]]]:
    with contextlib.ExitStack() as stack:
        children = []
        for slot in range(1, count + 1):
            setup = {
                "control_fd": sparse.control_fd,
                "arena_fd": sparse.arena_fd,
                "slot": slot,
                "incarnation": sparse.attach(slot),
                "namespace_id": sparse.namespace_id,
            }
            child = subprocess.Popen(
                [sys.executable, "-m", "bench.operations_worker", json.dumps(setup)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                pass_fds=(sparse.control_fd, sparse.arena_fd),
            )
            stack.callback(child.communicate)
            stack.callback(child.kill)
            children.append(child)
        for child in children:
            heard(child)
        yield children


def heard(child: subprocess.Popen[str]) -> Any:
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line:
        raise SystemExit("an operations worker ended early; its error stands above")
    return json.loads(line)


def table(rows: Sequence[dict[str, Any]]) -> Any:
    counts = list(dict.fromkeys(row["processes"] for row in rows))
    names = list(dict.fromkeys((row["arena"], row["operation"]) for row in rows))
    by = {(row["arena"], row["operation"], row["processes"]): row for row in rows}
    lines: list[list[object]] = [
        [f"{arena}: {operation}"]
        + [
            f"{by[arena, operation, n]['p50_ns']} / {by[arena, operation, n]['p99_ns']}"
            for n in counts
        ]
        for arena, operation in names
    ]
    for arena in dict.fromkeys(arena for arena, _ in names):
        operation = next(name for kind, name in names if kind == arena)
        lines.append(
            [f"{arena}: whole lives, million blocks/s"]
            + [by[arena, operation, n]["million_blocks_s"] for n in counts]
        )
        lines.append(
            [f"{arena}: refused, since others were quicker"]
            + [f"{by[arena, operation, n]['refused_share']:.3%}" for n in counts]
        )
    return harness.table(
        f"ns a block, p50 / p99 over batches of {BATCH}",
        ("operation", *(f"{n} process{'es' if n > 1 else ''}" for n in counts)),
        lines,
    )


if __name__ == "__main__":
    harness.run("operations", QUESTION, not_shown=NOT_SHOWN, measure=measure)

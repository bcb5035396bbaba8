"""How good is the cache at choosing what goes? The real broker, simulated policies, an oracle and the optimum.

`python -m bench.replay --trace FILE --budget BYTES` replays one trace (Mooncake's format, or ours) through real arenas and N
real engine processes and prints hit rates, evictions, the ceiling of an infinite cache, Belady's optimum and
the wall time; with --plot also the curves of all policies against budget, from the simulators, with what was measured.

Without these options it is the bench: policies against each other on a recorded trace and two synthetic workloads, ours
against libCacheSim on the same references, the simulated LRU and default against the real broker, eight engines with one
pool against eight pools, and MLA's one copy against one per rank.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pegashm.units import parse_bytes

from bench import harness
from bench.policies import oracle
from bench.policies.simulate import (
    POLICIES,
    Score,
    ceiling,
    optimum,
    replay_references,
    simulate,
)
from bench.policies.workload import CONVERSATION, Workload, agents, read_trace, scans
from bench.replay_broker import SEGMENT_BLOCKS, Plan, Replayed, replay
from bench.replay_plot import Curve, draw

__all__ = ["main", "measure"]

QUESTION = "How near does the choice of what goes come to the best possible, and what is one shared pool worth?"
NOT_SHOWN = (
    "time: requests come as fast as they are served, in the trace's order",
    "what a hit saves on an accelerator; recomputed tokens stand for it",
    "other traces: one hour of one provider's chat, and two synthetic workloads made by us",
)
BUDGETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)  # of the workload's different blocks
ENGINES = 8
RANKS = 8
DEALS = ("round-robin", "session")
WINDOW_BLOCKS = 500  # far below, W-TinyLFU has a window of a block or two, or in libCacheSim none and never a hit
RESULTS = Path(__file__).resolve().parent.parent / "results"
ARENA_LEAST = 4 << 20


def main() -> None:
    if {"-h", "--help"} & set(sys.argv) or any(
        word.startswith(("--trace", "--budget")) for word in sys.argv
    ):
        one(sys.argv[1:])
    else:
        harness.run("replay", QUESTION, not_shown=NOT_SHOWN, measure=measure)


# -- one replay ------------------------------------------------------------------------------------


def one(words: Sequence[str]) -> None:
    """A trace, a budget, and what the broker makes of it."""
    options = _parser().parse_args(words)
    workload = _workload(options.trace, options.requests)
    plan = Plan(
        budget=options.budget,
        engines=options.engines,
        layout=options.layout,
        deal=options.deal,
        block_bytes=options.block_bytes,
        copies=options.copies,
        eviction=options.eviction,
    )
    replayed = _replayed(workload, plan)
    most = ceiling(workload)
    capacity = plan.capacity * plan.arenas
    best = optimum(workload, capacity)
    print_one(workload, plan, replayed, most, best)
    if options.plot is not None:
        curves = _curves(workload, [int(workload.distinct * share) for share in BUDGETS])
        point = Curve("broker", [capacity], [replayed.score.block_rate], measured=True)
        draw(options.plot, {workload.name: [*curves, point]}, {workload.name: most.block_rate})
        harness.progress(f"wrote {options.plot}")
    print(json.dumps({"command": " ".join(["python", "-m", "bench.replay", *words]),
                      "workload": workload.name, "work_hash": workload.digest,
                      **_row(plan, replayed),
                      "ceiling": round(most.block_rate, 4), "belady": round(best.block_rate, 4)}))  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.replay",
        description=QUESTION,
        epilog="Without --trace and --budget: the whole comparison (--quick, --smoke).",
    )
    add = parser.add_argument
    add("--trace", required=True, metavar="FILE",
        help="requests to replay, or one of: conversation, scans, agents")  # fmt: skip
    add("--budget", required=True, type=parse_bytes, metavar="BYTES",
        help="payload memory of all arenas together, such as 64M")  # fmt: skip
    add("--engines", type=int, default=1, metavar="N")
    add("--layout", choices=("shared", "isolated"), default="shared")
    add("--deal", choices=("round-robin", "session"), default="round-robin")
    add("--block-bytes", type=parse_bytes, default=4096, metavar="BYTES",
        help="payload that stands for 512 tokens (default 4096)")  # fmt: skip
    add("--copies", type=int, default=1, metavar="N", help="of each block, as ranks keep their own")
    add("--eviction", metavar="NAME", help="the broker's policy (default: its own)")
    add("--requests", type=int, metavar="N", help="the first N only")
    add("--plot", type=Path, metavar="PNG")
    return parser


def _workload(name: str, most: int | None) -> Workload:
    if name == "conversation":
        return read_trace(CONVERSATION, most)
    if name == "scans":
        return scans(most or 6000)
    if name == "agents":
        return agents(most or 6000)
    if not Path(name).is_file():
        raise SystemExit(
            f"no such trace: {name}; expected a file, or conversation, scans or agents"
        )
    return read_trace(Path(name), most)


def _replayed(workload: Workload, plan: Plan) -> Replayed:
    """With a bar while it lasts."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        what = (
            f"{workload.name}, {plan.engines} engines, {plan.layout}, {plan.eviction or 'default'}"
        )
        task = bar.add_task(what, total=len(workload.requests))
        return replay(workload, plan, lambda done: bar.update(task, completed=done))


def print_one(workload: Workload, plan: Plan, replayed: Replayed, most: Score, best: Score) -> None:
    score = replayed.score
    rows = [
        ("requests", score.requests), ("blocks asked for", score.blocks),
        ("different blocks", workload.distinct),
        ("budget in blocks", f"{plan.capacity * plan.arenas} ({plan.arenas} x {plan.capacity})"),
        ("block hit rate", f"{score.block_rate:.2%}"),
        ("request hit rate", f"{score.request_rate:.2%}"),
        ("tokens computed", f"{score.tokens_computed} of {score.tokens}"),
        ("evictions", score.evictions), ("infinite cache: block hit rate", f"{most.block_rate:.2%}"),
        ("Belady: block hit rate", f"{best.block_rate:.2%}"),
        ("not stored for want of room", replayed.refused), ("wrong blocks", replayed.wrong),
        ("wall time", f"{replayed.seconds:.1f} s"),
    ]  # fmt: skip
    Console(width=None if sys.stdout.isatty() else 120, highlight=False).print(
        harness.table(f"{workload.name}, {plan.engines} engines, {plan.layout}", ("", ""), rows)
    )


# -- the bench -------------------------------------------------------------------------------------


def measure(options: harness.Options) -> harness.Findings:
    count = options.pick(None, 3000, 300)
    shares = options.pick(BUDGETS, (0.02, 0.1, 0.4), (0.1,))
    workloads = [
        read_trace(CONVERSATION, count),
        scans(count or 6000),
        agents(count or 6000),
    ]
    compared: list[dict[str, Any]] = []
    curves: dict[str, list[Curve]] = {}
    most: dict[str, float] = {}
    for workload in workloads:
        harness.progress(f"{workload.name}: simulated policies")
        most[workload.name] = ceiling(workload).block_rate
        budgets = [max(int(workload.distinct * share), 64) for share in shares]
        curves[workload.name] = _curves(workload, budgets)
        compared += _compared(workload.name, budgets, curves[workload.name])
    named = [row for each in workloads for row in oracle_rows(each, shares)]
    through_brokers = options.pick(workloads, workloads, workloads[:1])
    brokers = [row for each in through_brokers for row in broker_rows(each, options)]
    pools = pool_rows(workloads[0], options)
    mla = mla_rows(workloads[0], options)
    if options.extent == "full":
        RESULTS.mkdir(exist_ok=True)
        draw(RESULTS / f"replay-{datetime.now(timezone.utc):%Y-%m-%d}.png", curves, most)
    tables = [_policy_table(compared, most), _oracle_table(named), _broker_table(brokers),
              _pool_table(pools), _mla_table(mla)]  # fmt: skip
    figures = {
        "results": compared,
        "ceilings": {name: round(value, 4) for name, value in most.items()},
        "oracle": named,
        "oracle_points_most": max((abs(row["points"]) for row in named), default=None),
        "broker": brokers,
        "pools": pools,
        "pool_ratios": pool_ratios(pools),
        "mla": mla,
        "wrong_blocks": sum(row["wrong"] for row in [*brokers, *pools, *mla]),
    }
    notes = [
        "budgets are fractions of a workload's different blocks; blocks of 4 KiB stand for 512 tokens",
        "request hit rate: of requests whose second block an earlier one had, those that hit it",
    ]
    if not named:
        notes.append("libCacheSim is not installed (pip install libcachesim): not compared with it")
    notes += [
        f"one pool against {ENGINES}, dealt by {row['deal']}, {row['blocks']} blocks: request hit rate x {row['request_rate']}, "
        f"block hit rate x {row['block_rate']}, tokens computed x {row['tokens_computed']}"
        for row in pool_ratios(pools)
    ]
    digest = "".join(workload.digest for workload in workloads)
    return harness.Findings(tables, figures, digest[:16], notes=notes)


def _curves(workload: Workload, budgets: Sequence[int]) -> list[Curve]:
    """Each policy's block hit rate at each budget, Belady's last."""
    curves = []
    for name, make in POLICIES.items():
        rates = [simulate(make(capacity), workload.requests).block_rate for capacity in budgets]
        curves.append(Curve(name, list(budgets), rates))
    best = [optimum(workload, capacity).block_rate for capacity in budgets]
    return [*curves, Curve("Belady", list(budgets), best)]


def _compared(name: str, budgets: Sequence[int], curves: Sequence[Curve]) -> list[dict[str, Any]]:
    return [
        {"workload": name, "blocks": capacity,
         **{curve.name: round(curve.rates[place], 4) for curve in curves}}
        for place, capacity in enumerate(budgets)
    ]  # fmt: skip


def oracle_rows(workload: Workload, shares: Sequence[float]) -> list[dict[str, Any]]:
    """Our simulators beside libCacheSim's on the same references; nothing where it is missing."""
    if not oracle.available():
        return []
    references = [block for request in workload.requests for block in request.chain]
    rows = []
    for share in sorted({shares[0], shares[len(shares) // 2], shares[-1]}):
        capacity = max(int(workload.distinct * share), WINDOW_BLOCKS)
        for name, twin in oracle.TWINS.items():
            harness.progress(f"{workload.name}: {name} by libCacheSim, {capacity} blocks")
            ours = replay_references(twin.ours(capacity), references)
            theirs = oracle.hit_rate(twin, capacity, references)
            rows.append({"workload": workload.name, "policy": name, "blocks": capacity,
                         "ours": round(ours, 4), "libCacheSim": round(theirs, 4),
                         "points": round((ours - theirs) * 100, 2)})  # fmt: skip
    return sorted(rows, key=lambda row: (row["policy"], row["blocks"]))


def _plan(workload: Workload, share: float, **more: Any) -> Plan:
    """A part of the workload's different blocks, whole segments of which go to each of eight arenas; payloads so
    large that the smallest arena is one that `serve` accepts."""
    step = ENGINES * SEGMENT_BLOCKS
    blocks = max(round(workload.distinct * share / step), 1) * step
    block_bytes = 4096
    while (
        Plan(budget=blocks * block_bytes, block_bytes=block_bytes, **more).arena_bytes < ARENA_LEAST
    ):
        block_bytes *= 2
    return Plan(budget=blocks * block_bytes, block_bytes=block_bytes, **more)


def broker_rows(workload: Workload, options: harness.Options) -> list[dict[str, Any]]:
    """The broker beside the simulator of the same policy: one engine, so that the order is the same."""
    rows = []
    for share in options.pick((0.02, 0.1, 0.4), (0.1,), (0.1,)):
        for eviction, policy in BROKER_POLICIES.items():
            plan = _plan(workload, share, eviction=eviction)
            replayed = _replayed(workload, plan)
            told = simulate(POLICIES[policy](plan.capacity), workload.requests)
            best = optimum(workload, plan.capacity)
            rows.append({"workload": workload.name, "eviction": eviction,
                         "simulated": round(told.block_rate, 4),
                         "belady": round(best.block_rate, 4), **_row(plan, replayed)})  # fmt: skip
    return rows


BROKER_POLICIES: Mapping[str, str] = {"lru": "LRU", "adaptive": "adaptive"}


def pool_rows(workload: Workload, options: harness.Options) -> list[dict[str, Any]]:
    """Eight engines: one pool, or eight of an eighth."""
    rows = []
    for share in options.pick((0.05, 0.2, 0.5), (0.2,), (0.2,)):
        for layout in ("shared", "isolated"):
            for deal in options.pick(DEALS, DEALS, DEALS[:1]):
                plan = _plan(workload, share, engines=ENGINES, layout=layout, deal=deal)
                rows.append(_row(plan, _replayed(workload, plan)))
    return rows


def pool_ratios(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the shared pool has more of than eight, dealt alike."""
    ratios = []
    for deal in DEALS:
        alike = [row for row in rows if row["deal"] == deal]
        shared = [row for row in alike if row["layout"] == "shared"]
        isolated = [row for row in alike if row["layout"] == "isolated"]
        for one, eight in zip(shared, isolated, strict=True):
            ratios.append({
                "deal": deal, "blocks": one["blocks"],
                "request_rate": round(one["request_rate"] / max(eight["request_rate"], 1e-4), 2),
                "block_rate": round(one["block_rate"] / max(eight["block_rate"], 1e-4), 2),
                "tokens_computed": round(one["tokens_computed"] / eight["tokens_computed"], 3),
            })  # fmt: skip
    return ratios


def mla_rows(workload: Workload, options: harness.Options) -> list[dict[str, Any]]:
    """The same budget holding each block once, or once for each rank of TP8."""
    rows = []
    shorter = workload.first(options.pick(6000, 1000, 100))
    for share in options.pick((0.05, 0.2, 0.5), (0.2,), (0.2,)):
        for copies in (1, RANKS):
            plan = _plan(shorter, share, copies=copies)
            rows.append(_row(plan, _replayed(shorter, plan)))
    return rows


def _row(plan: Plan, replayed: Replayed) -> dict[str, Any]:
    score = replayed.score
    return {
        "engines": plan.engines, "layout": plan.layout, "deal": plan.deal, "copies": plan.copies,
        "budget_bytes": plan.budget, "blocks": plan.capacity * plan.arenas,
        "requests": score.requests, "block_rate": round(score.block_rate, 4),
        "request_rate": round(score.request_rate, 4), "tokens": score.tokens,
        "tokens_computed": score.tokens_computed, "evictions": score.evictions,
        "refused": replayed.refused, "wrong": replayed.wrong,
        "seconds": round(replayed.seconds, 2),
    }  # fmt: skip


# -- what is printed -------------------------------------------------------------------------------


def _percent(value: float) -> str:
    return f"{value * 100:.2f}"


def _policy_table(rows: Sequence[dict[str, Any]], most: Mapping[str, float]) -> Any:
    names = [*POLICIES, "Belady"]
    return harness.table(
        "Block hit rate, % (simulated, prefix semantics)",
        ("workload", "blocks", *names, "infinite"),
        [
            (row["workload"], row["blocks"], *(_percent(row[name]) for name in names),
             _percent(most[row["workload"]]))
            for row in rows
        ],
    )  # fmt: skip


def _oracle_table(rows: Sequence[dict[str, Any]]) -> Any:
    return harness.table(
        "The same references in libCacheSim, hit rate in %",
        ("workload", "policy", "blocks", "ours", "libCacheSim", "points apart"),
        [
            (row["workload"], row["policy"], row["blocks"], _percent(row["ours"]),
             _percent(row["libCacheSim"]), row["points"])
            for row in rows
        ],
    )  # fmt: skip


def _broker_table(rows: Sequence[dict[str, Any]]) -> Any:
    return harness.table(
        "The real broker, one engine",
        ("workload", "--eviction", "blocks", "block hits %", "simulated", "Belady", "request hits %",
         "evictions", "wrong", "s"),
        [
            (row["workload"], row["eviction"], row["blocks"], _percent(row["block_rate"]),
             _percent(row["simulated"]), _percent(row["belady"]), _percent(row["request_rate"]),
             row["evictions"], row["wrong"], row["seconds"])
            for row in rows
        ],
    )  # fmt: skip


def _pool_table(rows: Sequence[dict[str, Any]]) -> Any:
    return harness.table(
        f"{ENGINES} engines, one budget: conversation trace through real arenas",
        ("layout", "dealt", "blocks", "block hits %", "request hits %", "tokens computed %", "evictions",
         "wrong", "s"),
        [
            (row["layout"], row["deal"], row["blocks"], _percent(row["block_rate"]),
             _percent(row["request_rate"]), _percent(row["tokens_computed"] / row["tokens"]),
             row["evictions"], row["wrong"], row["seconds"])
            for row in rows
        ],
    )  # fmt: skip


def _mla_table(rows: Sequence[dict[str, Any]]) -> Any:
    return harness.table(
        f"MLA at TP{RANKS}: one copy of a block against one for each rank, the same budget",
        ("copies", "blocks", "block hits %", "request hits %", "tokens computed %", "evictions", "wrong"),
        [
            (row["copies"], row["blocks"], _percent(row["block_rate"]),
             _percent(row["request_rate"]), _percent(row["tokens_computed"] / row["tokens"]),
             row["evictions"], row["wrong"])
            for row in rows
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()

"""How are the rivals' figures shown? Lookups, copies by size, and what is left after a kill: a line for each store.

PegaShm is measured once in each leg. Its line shows the median of the legs; `times` columns compare within a leg only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bench import harness
from bench.rivals.deaths import NOT_ASKED
from bench.rivals.leg import KEY_COUNTS

__all__ = ["headline", "tables"]

OURS, LIMIT = "PegaShm", "memcpy"
Leg = Mapping[str, Any]


def tables(legs: Sequence[Leg], kills: Sequence[Mapping[str, Any]]) -> list[Any]:
    made = []
    if legs:
        made = [
            lookup_table(legs),
            *(copy_table(legs, clients) for clients in (1, 2)),
            times_table(legs),
            cost_table(legs),
        ]
    return [*made, client_table(kills), server_table(kills)]


def stores(legs: Sequence[Leg]) -> list[str]:
    """All titles, ours and the yardstick first."""
    titles = [row["store"] for leg in legs for row in leg["lookups"]]
    return list(dict.fromkeys([LIMIT, OURS, *titles]))


def over(legs: Sequence[Leg], part: str, field: str, **wanted: Any) -> float | None:
    """Median over the legs of a figure of the row that has these values."""
    found = [
        row[field]
        for leg in legs
        for row in leg[part]
        if all(row[name] == value for name, value in wanted.items())
    ]
    return harness.median(found) if found else None


def lookup_table(legs: Sequence[Leg]) -> Any:
    columns = ["store"]
    columns += [f"{count:,} key{'s' * (count > 1)}, there" for count in KEY_COUNTS]
    columns += [f"{count:,} key{'s' * (count > 1)}, not there" for count in KEY_COUNTS]
    rows = []
    for store in stores(legs):
        name = "dict of one process" if store == LIMIT else store
        cells: list[object] = [name]
        for hit in (True, False):
            for count in KEY_COUNTS:
                p50 = over(legs, "lookups", "us_p50", store=store, keys=count, hit=hit)
                p99 = over(legs, "lookups", "us_p99", store=store, keys=count, hit=hit)
                cells.append(f"{figure(p50)} / {figure(p99)}")
        rows.append(cells)
    return harness.table(
        "which of these keys are there: microseconds a call, p50 / p99", columns, rows
    )


def copy_table(legs: Sequence[Leg], clients: int) -> Any:
    sizes = list(dict.fromkeys(row["block_kib"] for leg in legs for row in leg["copies"]))
    columns = ["store", *(f"{way} {size} KiB" for size in sizes for way in ("put", "get"))]
    rows = []
    for store in stores(legs):
        cells: list[object] = [store]
        for size in sizes:
            for way in ("put", "get"):
                wanted = {"store": store, "clients": clients, "block_kib": size}
                rate = over(legs, "copies", f"{way}_gbs", **wanted)
                share = over(legs, "copies", f"{way}_share", **wanted)
                cells.append(f"{figure(rate)} ({figure(share)})")
        rows.append(cells)
    who = "one client" if clients == 1 else "two clients at once"
    return harness.table(f"{who}: GB/s (share of memcpy), 32 blocks a call", columns, rows)


def times_table(legs: Sequence[Leg]) -> Any:
    """The summary: PegaShm against each, in the rival's own leg."""
    found = headline(legs)["rivals"]
    names = next(iter(found.values()), {})
    columns = ["store", *(name.removesuffix("_times").replace("_", " ") for name in names)]
    rows = [
        (store, *(figure(value) for value in figures.values())) for store, figures in found.items()
    ]
    return harness.table(
        "how many times as fast PegaShm is, in the same rounds (1 client; lookups by keys a call, copies by KiB)",
        columns,
        rows,
    )


def cost_table(legs: Sequence[Leg]) -> Any:
    rows = [
        (
            leg["title"],
            leg["server_processes"],
            f"{leg['idle_cpu_share']:.1%}",
            f"{leg['server_resident_mib']:,} MiB",
        )
        for leg in legs
        if leg["server_processes"]
    ]
    return harness.table(
        "what its servers take while nobody asks them anything",
        ["store", "processes", "of a core", "memory beside the pool"],
        rows,
    )


def client_table(kills: Sequence[Mapping[str, Any]]) -> Any:
    rows = []
    for kill in kills:
        trials = kill["clients"]
        rows.append(
            (
                kill["store"],
                len(trials),
                sum(trial["put_before"] for trial in trials),
                sum(trial["get"].get("right", 0) for trial in trials),
                sum(trial["get"].get("wrong", 0) for trial in trials),
                worst(trial["get"] for trial in trials),
                worst(trial["put"] for trial in trials),
            )
        )
    columns = (
        "store",
        "kills",
        "blocks it had put",
        "right",
        "wrong",
        "getting them took",
        "next put of another took",
    )
    return harness.table("a client is killed (SIGKILL) while it puts; another looks", columns, rows)


def server_table(kills: Sequence[Mapping[str, Any]]) -> Any:
    rows = []
    for kill in kills:
        for row in kill["servers"]:
            left = row["left_bytes"]
            rows.append(
                (
                    f"{kill['store']}: {row['role']}",
                    said(row["exists"], lookup=True),
                    said(row["get"]),
                    said(row["put"]),
                    said(row["restart"]),
                    f"{left / 2**20:,.0f} MiB",
                )
            )
    columns = (
        "killed",
        "a living client looks up 32",
        "gets 32",
        "puts 32",
        "all clients killed too, server started again: a new client gets",
        "in /dev/shm meanwhile",
    )
    return harness.table("a server is killed (SIGKILL)", columns, rows)


def said(outcome: Mapping[str, Any], *, lookup: bool = False) -> str:
    """An outcome in a few words."""
    took = duration(outcome["seconds"])
    if outcome.get("nameless"):
        return "none: no names"
    if outcome.get("hangs"):
        return f"hangs (> {took})"
    if "ended" in outcome:
        return "not asked" if outcome["ended"] == NOT_ASKED else "its process has ended"
    if "error" in outcome:
        if lookup and " are there" in outcome["error"]:
            return f"{outcome['error'].split(': ', 1)[1].split(' of ')[0]} in {took}"
        return f"error after {took}"
    if lookup:
        return f"all in {took}"
    if "right" in outcome:
        wrong = f", {outcome['wrong']} WRONG" if outcome["wrong"] else ""
        return f"{outcome['right']}{wrong} in {took}"
    return f"in {took}"


def worst(outcomes: Iterable[Mapping[str, Any]]) -> str:
    """The longest, or what went wrong."""
    listed = list(outcomes)
    bad = [one for one in listed if {"hangs", "ended", "error", "nameless"} & one.keys()]
    if bad:
        return said(bad[0])
    return duration(max(outcome["seconds"] for outcome in listed))


def duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"


def figure(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def headline(legs: Sequence[Leg]) -> dict[str, Any]:
    """PegaShm against each rival in the rival's own leg: how many times as fast."""
    made: dict[str, Any] = {}
    for leg in legs:
        for store in stores([leg]):
            if store in (OURS, LIMIT):
                continue
            made[store] = {
                "lookup_1000_times": times([leg], "lookups", "us_p50", store, keys=1000, hit=True),
                "lookup_1_times": times([leg], "lookups", "us_p50", store, keys=1, hit=True),
                **{
                    f"{way}_{size}_times": times(
                        [leg], "copies", f"{way}_gbs", store, clients=1, block_kib=size
                    )
                    for size in dict.fromkeys(row["block_kib"] for row in leg["copies"])
                    for way in ("put", "get")
                },
            }
    return {"rivals": made}


def times(legs: Sequence[Leg], part: str, field: str, store: str, **wanted: Any) -> float | None:
    """How many times as fast as this rival PegaShm is: rates one way round, durations the other."""
    ours = over(legs, part, field, store=OURS, **wanted)
    theirs = over(legs, part, field, store=store, **wanted)
    if not ours or not theirs:
        return None
    return round(ours / theirs if field.endswith("gbs") else theirs / ours, 2)

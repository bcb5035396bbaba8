"""What do the results look like? Plots as PNG, drawn from results/*.json by page.py; nothing is measured here.

One function a plot, named for it in PLOTS; each says which bench's figures it wants. Colours follow the contender, not its rank, so that
PegaShm looks the same in all of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

__all__ = ["PLOTS", "draw"]

Result = Mapping[str, Any]
OURS, LIMIT = "#c1272d", "#666666"
OTHERS = (
    "#0000a7",
    "#008176",
    "#eecc16",
    "#8c5fbf",
    "#e07b39",
    "#4aa3df",
    "#7a5230",
    "#b0b0b0",
    "#e377c2",
)
DPI = 110


def rivals_lookup(result: Result) -> Any:
    """Microseconds of a lookup of 1, 64 and 1,000 keys that are there."""
    figure, axes = plt.subplots(figsize=(8.5, 4.4))
    for title, rows in by_store(result, "lookups").items():
        hits = [row for row in rows if row["hit"]]
        points = medians((row["keys"], row["us_p50"]) for row in hits)
        name = "dict of one process" if title == "memcpy" else title
        axes.plot(*zip(*points, strict=True), marker="o", label=name, **style(title))
    axes.set(
        xscale="log", yscale="log", xlabel="keys a call, all there", ylabel="microseconds (p50)"
    )
    axes.set_xticks([1, 64, 1000], ["1", "64", "1,000"])
    return finish(figure, axes, "Which of these keys are there?")


def rivals_copy(result: Result) -> Any:
    """Share of memcpy by block size, put and get, one client and two."""
    figure, grid = plt.subplots(2, 2, figsize=(10, 7), sharex=True, sharey=True)
    for (clients, way), axes in zip(
        itertools.product((1, 2), ("put", "get")), grid.flat, strict=True
    ):
        for title, rows in by_store(result, "copies").items():
            wanted = [row for row in rows if row["clients"] == clients]
            points = medians((row["block_kib"], row[f"{way}_share"]) for row in wanted)
            axes.plot(*zip(*points, strict=True), marker="o", label=title, **style(title))
        sizes = sorted({row["block_kib"] for leg in result["results"] for row in leg["copies"]})
        axes.set(xscale="log", yscale="log", xlabel="block, KiB" * (clients == 2))
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.set_xticks([], minor=True)
        axes.set_title(
            f"{way}, {'one client' if clients == 1 else 'two clients at once'}", fontsize=10
        )
        axes.grid(alpha=0.3)
    for axes in grid[:, 0]:
        axes.set_ylabel("share of memcpy")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=4, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.09, 1, 1))
    return figure


def lookup(result: Result) -> Any:
    """Nanoseconds a key by number of blocks, for each contender, cold and hot hits."""
    figure, grid = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True)
    for caches, axes in zip(("cold", "hot"), grid, strict=True):
        lines: dict[str, list[tuple[float, float]]] = {}
        for row in result["results"]:
            if (row.get("keys"), row.get("caches"), row.get("processes")) == ("hits", caches, 1):
                for name, ns in row["ns_per_key_p50"].items():
                    if not row.get("huge"):
                        lines.setdefault(name, []).append((row["blocks"], ns))
                    elif name == "find":
                        lines.setdefault("PegaShm, 2 MiB pages", []).append((row["blocks"], ns))
        for name, points in lines.items():
            shown = {"find": "PegaShm", "memory": "memory's limit"}.get(name, name)
            how = style({"find": "PegaShm", "memory": "memcpy"}.get(name, name))
            axes.plot(*zip(*sorted(points), strict=True), marker="o", label=shown, **how)
        axes.set(xscale="log", yscale="log", xlabel="blocks in the index")
        axes.set_title(f"hits, caches {caches}", fontsize=10)
        axes.grid(alpha=0.3, which="both")
    grid[0].set_ylabel("ns a key (p50), 1,000 keys a call")
    grid[0].legend(fontsize=8)
    figure.tight_layout()
    return figure


def copy(result: Result) -> Any:
    """GB/s of PegaShm's copies, of memcpy and of the best copy of the same run, by block size."""
    rows = [row for row in result["results"] if "limit_gbs" in row]
    places = [
        (pages, threads) for pages in unique(rows, "pages") for threads in unique(rows, "threads")
    ]
    figure, grid = plt.subplots(
        -(-len(places) // 2),
        2,
        figsize=(10, 3.2 * (-(-len(places) // 2))),
        sharex=True,
        squeeze=False,
    )
    for (pages, threads), axes in zip(places, grid.flat, strict=True):
        for direction, line in (("store", "-"), ("load", "--")):
            chosen = sorted(
                (row["block_kib"], row["limit_gbs"], row["copier_gbs"], row["limits_gbs"]["memcpy"])
                for row in rows
                if (row["pages"], row["threads"], row["direction"]) == (pages, threads, direction)
            )
            if not chosen:
                continue
            sizes, limits, ours, plain = zip(*chosen, strict=True)
            axes.plot(sizes, limits, line, color="#0000a7", label=f"best copy here, {direction}")
            axes.plot(sizes, ours, line, color=OURS, label=f"PegaShm, {direction}")
            axes.plot(sizes, plain, line, color=LIMIT, label=f"memcpy, {direction}")
        axes.set(xscale="log", ylabel="GB/s", ylim=(0, None))
        axes.set_title(f"pages: {pages}; {threads} thread(s)", fontsize=10)
        axes.grid(alpha=0.3)
        axes.set_xticks(
            unique(rows, "block_kib"), [str(size) for size in unique(rows, "block_kib")]
        )
        axes.set_xticks([], minor=True)
    grid[-1, 0].set_xlabel("block, KiB")
    grid[-1, 1].set_xlabel("block, KiB")
    grid[0, 0].legend(fontsize=8)
    figure.tight_layout()
    return figure


PLOTS: Mapping[str, tuple[str, Callable[[Result], Any]]] = {
    "rivals-lookup": ("rivals", rivals_lookup),
    "rivals-copy": ("rivals", rivals_copy),
    "lookup": ("lookup", lookup),
    "copy": ("copy", copy),
}
"""By name: whose figures it shows, and how."""


def draw(name: str, result: Result, path: Path) -> None:
    """Write one plot."""
    _colours.clear()
    figure = PLOTS[name][1](result)
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
    plt.close(figure)


def by_store(result: Result, part: str) -> dict[str, list[Mapping[str, Any]]]:
    """Rows of all legs, by store."""
    found: dict[str, list[Mapping[str, Any]]] = {"memcpy": [], "PegaShm": []}
    for leg in result["results"]:
        for row in leg[part]:
            found.setdefault(row["store"], []).append(row)
    return found


def medians(points: Any) -> list[tuple[float, float]]:
    """One point for each x: the median of its ys."""
    grouped: dict[float, list[float]] = {}
    for x, y in points:
        grouped.setdefault(x, []).append(y)
    return [(x, sorted(ys)[len(ys) // 2]) for x, ys in sorted(grouped.items())]


_colours: dict[str, str] = {}


def style(title: str) -> dict[str, Any]:
    """Ours stands out, the yardstick stands back."""
    if title == "PegaShm":
        return {"color": OURS, "linewidth": 2.5, "zorder": 3}
    if title.startswith("PegaShm"):
        return {"color": OURS, "linestyle": "--", "zorder": 3}
    if title == "memcpy":
        return {"color": LIMIT, "linestyle": ":"}
    colour = _colours.setdefault(title, OTHERS[len(_colours) % len(OTHERS)])
    return {"color": colour, "linewidth": 1.3}


def unique(rows: Sequence[Mapping[str, Any]], field: str) -> list[Any]:
    return list(dict.fromkeys(row[field] for row in rows))


def finish(figure: Any, axes: Axes, title: str) -> Any:
    axes.set_title(title, fontsize=11)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.tight_layout()
    return figure

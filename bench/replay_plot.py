"""How does the hit rate grow with the budget? A picture: one panel a workload, one line a policy, the ceiling dashed.

Needs matplotlib; without it the picture is left out and a line says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import harness

__all__ = ["Curve", "draw"]


@dataclass(frozen=True, slots=True)
class Curve:
    """Hit rates at budgets in blocks. `measured`: by the real broker, drawn as points."""

    name: str
    budgets: Sequence[int]
    rates: Sequence[float]
    measured: bool = False


def draw(path: Path, panels: Mapping[str, Sequence[Curve]], most: Mapping[str, float]) -> None:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import NullFormatter, ScalarFormatter
    except ImportError:
        harness.progress("no picture: matplotlib is not installed. Type: pip install matplotlib")
        return
    figure = Figure(figsize=(5.5 * len(panels), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for place, (name, curves) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), place + 1)
        for curve in curves:
            percent = [rate * 100 for rate in curve.rates]
            if curve.measured:
                axes.plot(curve.budgets, percent, "k*", markersize=12, label=curve.name)
            else:
                style = "k-" if curve.name == "Belady" else "-"
                axes.plot(curve.budgets, percent, style, marker=".", label=curve.name)
        axes.axhline(most[name] * 100, linestyle="--", color="grey", label="infinite")
        axes.set_xscale("log")
        axes.set_xticks(sorted({budget for curve in curves for budget in curve.budgets}))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(axis="x", labelsize=7)
        axes.set_title(name)
        axes.set_xlabel("budget, blocks of 512 tokens")
        axes.set_ylabel("block hit rate, %")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)

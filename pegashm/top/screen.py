"""What does `pegashm top` look like? One moment as a screen for a terminal of any size, or as one line for a pipe.

From top to bottom: which arena and is it well; hit rate by tier beside its ceiling, and memory by state; namespaces and clients; SSD and other
hosts where there are any; what happened last. Each tier and state has one colour everywhere. What does not fit is left out from the bottom. Every string
from shared memory is made plain first. Pure: draws, reads nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from pegashm.exporter.judging import judge
from pegashm.exporter.reading import Reading, Survey
from pegashm.tools.plain import shown
from pegashm.top.rates import Moment
from pegashm.units import format_bytes

__all__ = ["LINE_HEAD", "line", "screen"]

_TIERS: Final = (
    ("memory", "green"),
    ("ssd", "cyan"),
    ("remote", "magenta"),
    ("pending", "yellow"),
    ("missed", "red"),
)
_STATES: Final = (
    ("pinned", "magenta"),
    ("ready", "green"),
    ("claimed", "yellow"),
    ("evicting", "red"),
    ("free", "bright_black"),
)
_EVENT_STYLES: Final = {
    "publish": "green",
    "evict": "red",
    "spill": "cyan",
    "forget": "bright_black",
}
_STATE_STYLES: Final = {
    "ready": "bold green",
    "unsupervised": "bold yellow",
    "not_ready": "bold yellow",
}
_NARROW: Final = 100  # columns below which panels stand one above the other
_BAR: Final = "█"
_ROWS_LEAST: Final = 3
_EVENTS_MOST: Final = 8
_SHARE_WIDTH: Final = 8

LINE_HEAD: Final = "TIME         LOOKUP/S   MEM%   SSD%  HOST%  MISS%    STORED/S    LOADED/S   EVICT/S    USED%   PINNED CLIENTS  STATE"


def line(now: Moment) -> str:
    """One moment as a line under LINE_HEAD."""
    reading = now.reading
    clock = time.strftime("%H:%M:%S", time.localtime(reading.taken_at_ns / 1e9))
    if not reading.is_open:
        return f"{clock}  {reading.state}: {shown(reading.reason)}"
    shares = now.shares if now.has_rates else now.ever
    used, pinned = _used(reading), reading.survey.pinned if reading.survey else 0
    figures = (
        f"{clock:<10} {_count(now.rate('lookups')):>10} {shares.memory:>6.1%} {shares.ssd:>6.1%} {shares.remote:>6.1%} "
        f"{shares.missed + shares.pending:>6.1%} {_bytes(now.rate('stored_bytes')):>11} {_bytes(now.rate('loaded_bytes')):>11} "
        f"{_count(now.rate('evicted')):>9} {used:>8.1%} {pinned:>8} {sum(1 for c in reading.clients if c.alive):>7}  "
    )
    return figures.replace("%", " ") + judge(reading).status


def screen(
    now: Moment, *, width: int, height: int, interval: float, paused: bool = False
) -> RenderableType:
    """A whole screen."""
    reading = now.reading
    parts: list[RenderableType] = [_title(now, interval, paused, width)]
    if not reading.is_open:
        parts += [Text(), Text(shown(reading.reason), "yellow")]
        parts += [Text(f"  {shown(reason.advice)}", "cyan") for reason in judge(reading).reasons]
        return Group(*parts)
    parts += [
        Text.assemble((f"! {shown(reason.text)} ", "yellow"), (f"  {shown(reason.advice)}", "cyan"))
        for reason in judge(reading).reasons
    ]
    wide = width >= _NARROW
    half = width // 2 if wide else width
    parts.append(_beside(wide, _hits(now, half), _memory(now, half)))
    left = height - 2 - len(parts) - (11 if wide else 20)
    rows = max(_ROWS_LEAST, left // (3 if _has_tiers(reading) else 2) - 2)
    parts.append(_beside(wide, _namespaces(reading, half, rows), _clients(reading, half, rows)))
    if _has_tiers(reading):
        below = [_ssd(now, half)] if reading.header["spill_record_count"] else []
        below += [_hosts(now, half, rows)] if reading.header["remote_bucket_count"] else []
        parts.append(_beside(wide, *below))
    parts.append(_events(now, width, max(_ROWS_LEAST, min(_EVENTS_MOST, rows))))
    return Group(*parts)


# -- its parts -----------------------------------------------------------------------------------------


def _title(now: Moment, interval: float, paused: bool, width: int) -> Text:
    reading = now.reading
    style = _STATE_STYLES.get(reading.state, "bold red")
    text = Text.assemble(
        ("pegashm top", "bold"),
        "  ",
        (shown(reading.name), "bold cyan"),
        "  ",
        (reading.state.replace("_", " "), style),
    )
    if reading.is_open:
        created = int(reading.header["created_at_ns"])
        text.append(f"  {format_bytes(int(reading.header['payload_bytes']))}")
        text.append(f"  up {_age((reading.taken_at_ns - created) / 1e9)}", "bright_black")
    if paused:
        text.append("  PAUSED", "bold yellow")
    ends = f"every {interval:g} s  q quit  p pause  + - faster, slower"
    room = width - len(text.plain) - len(ends)
    if room > 2:
        text.append(" " * room)
        text.append(ends, "bright_black")
    return text


def _hits(now: Moment, width: int) -> Panel:
    shares = now.shares if now.has_rates else now.ever
    since = "" if now.has_rates else "  since it was made"
    table = _grid()
    table.add_row("looked up", Text(f"{_count(now.rate('lookups'))}/s{since}"))
    table.add_row(
        "found", _bar([(getattr(shares, name), style) for name, style in _TIERS], width - 20)
    )
    told = [
        (_share(getattr(shares, name)), name, style)
        for name, style in _TIERS
        if getattr(shares, name) or name in ("memory", "missed")
    ]
    table.add_row("", _legend(told))
    for window in (now.reading.survey.reuse if now.reading.survey else ())[:3]:
        table.add_row(window.window, _against_ceiling(window.hit_rate, window.ceiling, width - 20))
    return _panel("Hits", table, width)


def _against_ceiling(served: float | None, ceiling: float | None, width: int) -> Text:
    """How much of what could be found was: the bar is the ceiling, its filled part what was served."""
    if served is None or ceiling is None:
        return Text("nothing was asked for", "bright_black")
    told = f" {_share(served)} of {_share(ceiling)} possible"
    room = max(4, width - len(told))
    return _bar(
        [(served, "green"), (max(0.0, ceiling - served), "bright_black")], room, full=False
    ) + Text(told)


def _memory(now: Moment, width: int) -> Panel:
    reading, table = now.reading, _grid()
    survey = reading.survey
    if survey is not None:
        held = _bytes_by_state(reading, survey)
        total = max(1, sum(held.values()))
        shares = [(held[name] / total, style) for name, style in _STATES]
        table.add_row("memory", _bar(shares, width - 20, full=False))
        table.add_row(
            "",
            _legend(
                [
                    (_bytes(held[name]), name, style)
                    for name, style in _STATES
                    if held[name] or name in ("ready", "free")
                ]
            ),
        )
        ready = int(reading.header["segments_ready"])
        assigned = sum(1 for state in survey.states if state != "unassigned")
        table.add_row(
            "blocks",
            Text(
                f"{survey.tally.get('ready', 0)} ready, {survey.pinned} pinned; {assigned} of {ready} segments used"
            ),
        )
    table.add_row(
        "stored", Text(f"{_count(now.rate('stored'))}/s   {_bytes(now.rate('stored_bytes'))}/s")
    )
    table.add_row("loaded", Text(f"{_bytes(now.rate('loaded_bytes'))}/s"))
    refused = now.rate("refused") + now.rate("over_quota")
    text = Text(f"{_count(now.rate('evicted'))}/s")
    if refused > 0:
        text.append(f"   {_count(refused)}/s not stored for want of room", "yellow")
    table.add_row("evicted", text)
    return _panel("Memory", table, width)


def _namespaces(reading: Reading, width: int, rows: int) -> Panel:
    payload = max(1, int(reading.header["payload_bytes"]))
    used: dict[int, int] = {}
    for client in reading.clients:
        used[client.namespace_id] = used.get(client.namespace_id, 0) + 1
    order = sorted(reading.namespaces, key=lambda each: -each.resident_bytes)
    limited = any(each.reserved_bytes or each.maximum_bytes for each in order)
    limits = [("reserve", "right"), ("max", "right")] if limited else []
    table = _table(
        ("namespace", "left"),
        ("blocks", "right"),
        ("resident", "right"),
        ("", "left"),
        *limits,
        ("clients", "right"),
    )
    table.columns[0].ratio = 1
    for each in order[:rows]:
        of_limits = [
            _bytes(nbytes) if nbytes else "-"
            for nbytes in (each.reserved_bytes, each.maximum_bytes)
        ]
        table.add_row(
            Text(shown(each.label), overflow="ellipsis", no_wrap=True),
            f"{each.ready + each.claimed}",
            _bytes(each.resident_bytes),
            _bar([(each.resident_bytes / payload, "green")], _SHARE_WIDTH),
            *(of_limits if limited else []),
            str(used.get(each.id, 0)),
        )
    return _panel("Namespaces" + _more(order, rows), table, width)


def _clients(reading: Reading, width: int, rows: int) -> Panel:
    table = _table(
        ("client", "left"),
        ("pid", "right"),
        ("pins", "right"),
        ("for", "right"),
        ("claims", "right"),
        ("", "left"),
    )
    table.columns[0].ratio = 1
    order = sorted(reading.clients, key=lambda each: (each.alive, -each.pinned))
    for each in order[:rows]:
        state = (
            Text("alive", "green")
            if each.alive
            else Text("dead" if not each.copiers_alive else "workers live", "bold red")
        )
        table.add_row(
            Text(
                f"{each.slot} {shown(each.label or each.engine_id)}",
                overflow="ellipsis",
                no_wrap=True,
            ),
            str(each.pid),
            str(each.pinned),
            _age(each.oldest_pin_seconds) if each.pinned else "-",
            str(each.claims),
            state,
        )
    return _panel("Clients" + _more(order, rows), table, width)


def _ssd(now: Moment, width: int) -> Panel:
    spill, table = now.reading.spill, _grid()
    if spill is None:
        return _panel("SSD", table, width)
    worker = (
        Text("alive", "green")
        if now.reading.worker_alive
        else Text("no transport worker: blocks there are misses", "bold red")
    )
    table.add_row("worker", worker)
    table.add_row(
        "listed",
        Text(
            f"{spill.listed} blocks in {spill.files_usable} of {max(spill.files, spill.files_usable)} files"
        ),
    )
    table.add_row(
        "written",
        Text(
            f"{_count(now.rate('spilled'))}/s   {_bytes(now.rate('spilled_bytes'))}/s   {spill.backlog_blocks} wait"
        ),
    )
    table.add_row(
        "read back",
        Text(f"{_count(now.rate('promoted'))}/s   {_bytes(now.rate('ssd_read_bytes'))}/s"),
    )
    if spill.daily_bytes_limit:
        share = spill.daily_bytes_written / spill.daily_bytes_limit
        told = Text(
            f" {share:.0%} of {_bytes(spill.daily_bytes_limit)} a day",
            "yellow" if share > 0.9 else "",
        )
        table.add_row("budget", _bar([(min(share, 1.0), "cyan")], _SHARE_WIDTH * 2) + told)
    return _panel("SSD", table, width)


def _hosts(now: Moment, width: int, rows: int) -> Panel:
    peers = now.reading.peers
    if peers is None:
        return _panel(
            "Other hosts", Text("the transport worker has not said any yet", "bright_black"), width
        )
    table = _table(
        ("host", "left"),
        ("hints", "right"),
        ("share", "right"),
        ("fetched", "right"),
        ("failed", "right"),
        ("", "left"),
    )
    table.columns[0].ratio = 1
    order = sorted(peers.as_dict()["peers"], key=lambda peer: (peer["usable"], -peer["hints"]))
    for peer in order[:rows]:
        state = Text("usable", "green") if peer["usable"] else Text("not heard", "yellow")
        if peer["breaker"] == "open":
            state = Text("left alone", "bold red")
        table.add_row(
            Text(shown(peer["address"]), overflow="ellipsis", no_wrap=True),
            str(peer["hints"]), f"{peer['share']:.0%}", str(peer["fetched"]), str(peer["failed"]), state,
        )  # fmt: skip
    rates = Text(
        f"fetched {_count(now.rate('fetched'))}/s {_bytes(now.rate('fetched_bytes'))}/s   "
        f"served {_count(now.rate('served'))}/s {_bytes(now.rate('served_bytes'))}/s",
        "bright_black",
    )
    return _panel("Other hosts" + _more(order, rows), Group(table, rates), width)


def _events(now: Moment, width: int, rows: int) -> Panel:
    reading, table = (
        now.reading,
        _table(
            ("event", "right"),
            ("", "left"),
            ("key", "left"),
            ("group", "right"),
            ("namespace", "left"),
        ),
    )
    table.columns[4].ratio = 1
    for event in list(reading.events)[-rows:][::-1]:
        table.add_row(
            str(event.sequence),
            Text(event.event, _EVENT_STYLES.get(event.event, "")),
            event.key[:16],
            str(event.group),
            Text(
                shown(reading.namespace_label(event.namespace_id) or f"{event.namespace_id:#x}"),
                overflow="ellipsis",
                no_wrap=True,
            ),
        )
    return _panel(f"Events, {_count(now.rate('events'))}/s", table, width)


def _bytes_by_state(reading: Reading, survey: Survey) -> dict[str, int]:
    """Memory by what is in it; what no block has yet is free too."""
    held = dict.fromkeys((name for name, _ in _STATES), 0)
    for part in survey.parts:
        stride = survey.strides[part.segment]
        held["pinned"] += part.pinned * stride
        held["ready"] += max(0, part.ready - part.pinned) * stride
        held["claimed"] += part.claimed * stride
        held["evicting"] += part.evicting * stride
    held["free"] = max(0, int(reading.header["payload_bytes"]) - sum(held.values()))
    return held


# -- words and shapes ----------------------------------------------------------------------------------


def _has_tiers(reading: Reading) -> bool:
    return reading.has_worker


def _beside(wide: bool, *panels: RenderableType) -> RenderableType:
    if not wide:
        return Group(*panels)
    table = Table.grid(expand=True)
    for _ in range(2):
        table.add_column(ratio=1)
    table.add_row(*panels)
    return table


def _panel(title: str, content: RenderableType, width: int) -> Panel:
    return Panel(
        content,
        title=Text(title, "bold"),
        title_align="left",
        border_style="bright_black",
        padding=(0, 1),
        width=width,
    )


def _grid() -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(style="bright_black", no_wrap=True, min_width=9)
    table.add_column(no_wrap=True, overflow="ellipsis")
    return table


def _table(*columns: tuple[str, str]) -> Table:
    table = Table(
        box=None, expand=True, pad_edge=False, padding=(0, 1), header_style="bright_black"
    )
    for title, justify in columns:
        table.add_column(Text(title), justify=justify, no_wrap=True)  # type: ignore[arg-type]
    return table


def _bar(parts: Sequence[tuple[float, str]], width: int, *, full: bool = True) -> Text:
    """Shares of 1 side by side; a share that is not 0 has at least one cell. `full`: fill up what is left, dimly."""
    width = max(4, width)
    text, used = Text(no_wrap=True), 0.0
    cells = 0
    for share, style in parts:
        used += max(0.0, share)
        upto = min(width, round(used * width))
        count = max(upto - cells, 1 if share > 0 and cells < width else 0)
        text.append(_BAR * count, style)
        cells += count
    if full and cells < width:
        text.append("░" * (width - cells), "bright_black")
    return text


def _legend(parts: Iterable[tuple[str, str, str]]) -> Text:
    text = Text(no_wrap=True, overflow="ellipsis")
    for figure, name, style in parts:
        text.append(_BAR, style)
        text.append(f"{figure} {name} ")
    return text


def _more(rows: Sequence[object], most: int) -> str:
    return f" ({most} of {len(rows)})" if len(rows) > most else ""


def _used(reading: Reading) -> float:
    survey = reading.survey
    if survey is None or not survey.capacity:
        return 0.0
    resident = sum(each.resident_bytes for each in reading.namespaces)
    return min(1.0, resident / max(1, int(reading.header["payload_bytes"])))


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _count(value: float) -> str:
    if math.isnan(value):
        return "-"
    for letter, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 10 * size:
            return f"{value / size:.0f}{letter}"
        if value >= size:
            return f"{value / size:.1f}{letter}"
    return f"{value:.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


def _bytes(value: float) -> str:
    if math.isnan(value):
        return "-"
    for letter, size in (("T", 1 << 40), ("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)):
        if value >= 10 * size:
            return f"{value / size:.0f} {letter}iB"
        if value >= size:
            return f"{value / size:.1f} {letter}iB"
    return f"{value:.0f} B"


def _age(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f}{unit}"
    return f"{max(0.0, seconds):.0f}s"

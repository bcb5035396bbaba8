"""Is everything that is exported in docs/metrics.md, and is every alert that may wake somebody explained there?"""

from __future__ import annotations

import re
from pathlib import Path

from pegashm.exporter.definitions import DEFINITIONS
from pegashm.exporter.judging import REASONS

from tools.docs.metrics import PAGE, page

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "rules.yml"


def test_its_tables_are_the_codes() -> None:
    text = PAGE.read_text()
    assert page(text) == text, (
        "docs/metrics.md is stale: type `python -m tools.docs.metrics` and commit it"
    )


def test_every_alert_is_explained() -> None:
    alerts = set(re.findall(r"- alert: (\w+)", RULES.read_text()))
    assert len(alerts) > 10
    assert alerts == set(re.findall(r"`(PegaShm\w+)`", PAGE.read_text()))


def test_alerts_and_dashboard_ask_for_what_is_exported() -> None:
    known = {definition.exposed for definition in DEFINITIONS}
    known |= {f"{each.name}_bucket" for each in DEFINITIONS if each.kind == "histogram"}
    for path in (RULES, ROOT / "deploy" / "grafana" / "pegashm.json"):
        asked = set(re.findall(r"\bpegashm_\w+", path.read_text()))
        assert asked <= known, path
        for reason in re.findall(r'health_reason\{reason="(\w+)"', path.read_text()):
            assert reason in REASONS


def test_names_are_prometheus_own() -> None:
    """Base units, last; no `_total` by hand; lower case."""
    for definition in DEFINITIONS:
        assert re.fullmatch(r"pegashm_[a-z_]+", definition.name)
        assert not definition.name.endswith(("_total", "_info", "_ms", "_us", "_kb", "_mib"))
        for unit in ("seconds", "bytes", "ratio", "blocks"):
            if definition.unit == unit and definition.kind == "gauge":
                assert unit in definition.name, definition.name
        assert definition.help.endswith(".")

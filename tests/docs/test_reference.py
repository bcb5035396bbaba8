"""Does docs/configuration.md say what the code does, all of it and nothing else?"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from pegashm.connector.settings import OURS, VLLM, Settings, settings_of

from tools.docs import reference

ROOT = Path(__file__).parents[2]
ARENA = {"PEGASHM_ARENA": "kv0"}
# Read by the code, and not for operators.
INTERNAL = {"PEGASHM_CRASH"}
_READ = re.compile(r"""["'](PEGASHM_[A-Z_]+)["']""")


def test_page_is_current() -> None:
    assert reference.PAGE.read_text(encoding="utf-8") == reference.page(), (
        "docs/configuration.md is stale: type `python -m tools.docs.reference` and commit it"
    )


def test_every_variable_is_told() -> None:
    sources = [
        *(ROOT / "pegashm").rglob("*.py"),
        *(ROOT / "connector").glob("*.py"),
        *(ROOT / "tools").glob("*.py"),
    ]
    read = {name for path in sources for name in _READ.findall(path.read_text(encoding="utf-8"))}
    assert not read - INTERNAL - reference.variables()


def test_settings_and_their_descriptions_are_the_same_list() -> None:
    fields = {field.name for field in dataclasses.fields(Settings)} - {"arena", "required"}
    assert fields == set(OURS)
    assert not set(OURS) & set(VLLM)


@pytest.mark.parametrize(
    "key", [name for name in OURS if name not in {"weights_version", "maximum_bytes"}]
)
def test_told_default_is_the_default(key: str) -> None:
    """To say what the page calls the default is to say nothing."""
    default = OURS[key].default
    told = settings_of({key: {"true": True, "false": False}.get(default, default)}, ARENA)
    if key == "checksums":  # None until the spec decides, see CHECKSUMS_DEFAULT
        assert told.checksums is not None
        assert told.checksums.value == default
    else:
        assert told == settings_of({}, ARENA)

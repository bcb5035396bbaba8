"""A pair of hosts over each fabric that can run here; the others skip, with the reason."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fabric.kinds import KINDS, Kind
from tests.fabric.rig import Pair


@pytest.fixture(params=list(KINDS))
def kind_name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    reason = KINDS[name].why_not()
    if reason is not None:
        pytest.skip(f"{name.partition('-')[0]}: {reason}")
    return name


@pytest.fixture
def kind(kind_name: str) -> Kind:
    return KINDS[kind_name]


@pytest.fixture
def pair(kind_name: str) -> Iterator[Pair]:
    made = Pair(kind_name)
    yield made
    made.close()

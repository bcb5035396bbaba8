"""What the page's tests share: one browser for all of them, and a scene with its exporter."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pegashm.arena import Arena
from pegashm.cache import Cache

from tests.page import browser as browsers
from tests.page.browser import Browser
from tests.page.scene import exporting, filled


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    reason = browsers.why_not()
    if reason:
        pytest.skip(reason)
    with browsers.opened() as browser:
        yield browser


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    """As wide as a desk, light, and on no page."""
    chromium.size(1280, 900)
    chromium.prefers("light")
    yield chromium
    chromium.driver.get("about:blank")


@pytest.fixture
def scene() -> Iterator[tuple[Arena, Cache]]:
    with filled() as made:
        yield made


@pytest.fixture
def address(scene: tuple[Arena, Cache]) -> Iterator[str]:
    with exporting(scene[0].name) as shown:
        yield shown

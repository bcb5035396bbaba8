"""Does the page show what the region holds, in a real browser, to whoever looks, whatever happens to what it looks at?"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from pegashm.arena import Arena
from pegashm.cache import Cache
from pegashm.units import KIB

from tests.arenas import make_arena, remove_arena
from tests.page.browser import Browser
from tests.page.fleet import GEMMA, QWEN, fleet
from tests.page.scene import HOSTILE, QUIET, SHAPE, exporting, keys, publish
from tests.ports import free_port
from tests.served import pegashm

LABEL = QUIET.label
Scene = tuple[Arena, Cache]


def test_the_regions_figures(browser: Browser, scene: Scene, address: str) -> None:
    arena, cache = scene
    browser.open(address)
    tally = arena.region.tally()
    assert (25, 2) == (tally["ready"], tally["claimed"])

    assert arena.name == browser.text("arena-name")
    assert "160 KiB" == browser.text("tile-memory").replace("\n", " ")
    assert "of 768 KiB, 20.8 %" == browser.text("tile-memory-note")
    assert "3 blocks" == browser.text("tile-pinned")
    assert "2 attached" == browser.text("tile-clients")
    assert "Ready\n25" in browser.text("memory-pairs")
    assert "Being written\n2" in browser.text("memory-pairs")
    window = browser.rows("reuse-table")[0]
    assert ("80", "25.0 %") == (window["Asked for"], window["Hit rate"])
    assert "25.0 %" == browser.text("tile-rate")

    spaces = {row["Namespace"]: row for row in browser.rows("namespaces-table")}
    assert ("20", "128 KiB") == (spaces[LABEL]["Blocks"], spaces[LABEL]["Maximum"])
    assert "5" == spaces[HOSTILE]["Blocks"]
    clients = {row["Client"]: row for row in browser.rows("clients-table")}
    assert ("3", "2") == (clients["engine 0"]["Pins"], clients["engine 0"]["Claims"])
    assert "0" == clients[HOSTILE]["Pins"]
    segments = {row["Block size"]: row for row in browser.rows("map-table")}
    for stride, words in ((4 * KIB, "4 KiB"), (16 * KIB, "16 KiB")):
        rows = [row for row in arena.region.segments() if row["stride_bytes"] == stride]
        shown = [segments[words][name] for name in ("Ready", "Claimed", "Free")]
        kept = [sum(row[name] for row in rows) for name in ("ready", "claimed", "free")]
        assert list(map(str, kept)) == shown
    journal = browser.rows("journal-table")
    assert 10 == len(journal)
    assert {"publish"} == {row["Event"] for row in journal}

    cache.evict(cache.find(keys(10, 5))[0])
    browser.until(lambda: "Ready\n20" in browser.text("memory-pairs"))
    browser.until(lambda: browser.rows("journal-table")[0]["Event"] == "evict")
    assert [] == browser.complaints()


def test_asks_nobody_else(browser: Browser, address: str) -> None:
    browser.open(address)
    hosts = {urlsplit(url).netloc for url in browser.requested() if not url.startswith("data:")}
    assert {urlsplit(address).netloc} == hosts
    assert [] == browser.complaints()


def test_labels_are_text(browser: Browser, address: str) -> None:
    """A namespace and a client whose names are markup: shown as they are, and nothing of it runs."""
    browser.open(address)
    for table, column in (("namespaces-table", "Namespace"), ("clients-table", "Client")):
        assert HOSTILE in {row[column] for row in browser.rows(table)}
        assert 0 == browser.js(f"document.querySelectorAll('#{table} img, #{table} script').length")
    assert browser.js("window.owned === undefined")
    assert HOSTILE in browser.js("document.getElementById('map-legend').textContent")
    # Were the page to forget it one day, the browser would still refuse.
    assert browser.js(
        "(() => { try { document.body.innerHTML = '<b>x</b>'; return false } catch { return true } })()"
    )


def test_both_themes(browser: Browser, address: str) -> None:
    def ground() -> str:
        found: str = browser.js("getComputedStyle(document.body).backgroundColor")
        return found

    browser.open(address)
    light = ground()
    browser.prefers("dark")
    dark = ground()
    assert light != dark, "as the system says"
    for words, expected in (("light", light), ("dark", dark), ("auto", dark)):
        browser.js("document.getElementById('theme').click()")
        assert f"Theme: {words}" == browser.text("theme")
        assert expected == ground()
    browser.js("document.getElementById('theme').click()")
    browser.open(address)
    assert ("Theme: light", light) == (browser.text("theme"), ground()), "the choice is kept"
    browser.js("localStorage.clear()")
    assert [] == browser.complaints()


@pytest.mark.parametrize("width", [360, 768, 1280, 2560])
def test_nothing_sticks_out(browser: Browser, address: str, width: int) -> None:
    browser.size(width, 800, phone=width < 500)
    browser.open(address)
    assert width == browser.js("document.documentElement.clientWidth")
    assert width >= browser.js("document.documentElement.scrollWidth")


def test_without_a_mouse(browser: Browser, address: str) -> None:
    browser.open(address)
    from selenium.webdriver import Keys

    canvas = browser.driver.find_element("id", "map-canvas")
    assert re.fullmatch(
        r"\d+ of 12 segments in use, \d+ empty, 1 not populated yet", browser.text("map-readout")
    )
    canvas.send_keys(Keys.ARROW_RIGHT)
    assert browser.text("map-readout").startswith("Segment 0, ")
    canvas.send_keys(Keys.ARROW_RIGHT)
    assert browser.text("map-readout").startswith("Segment 1")
    browser.js("document.querySelector('#rate-table').parentElement.open = true")
    browser.driver.find_element("css selector", "[data-span='3600']").send_keys(Keys.ENTER)
    browser.until(
        lambda: browser.js("document.querySelector('[data-span=\"3600\"]').ariaPressed === 'true'")
    )
    unnamed = browser.js("""[...document.querySelectorAll('button, #map-canvas, [role=img], main table')].filter((node) =>
        !node.hidden && !(node.ariaLabel || node.textContent.trim() || node.getAttribute('aria-labelledby'))).map((node) => node.outerHTML)""")
    assert [] == unnamed
    assert [] == browser.complaints()


def test_why_it_is_degraded(browser: Browser, address: str) -> None:
    browser.open(address)
    assert "Degraded" == browser.text("health")
    names = browser.js(
        "[...document.querySelectorAll('#reasons li')].map((item) => item.dataset.reason)"
    )
    assert {"unsupervised", "populating", "worker_dead"} <= set(names)
    assert "pegashm serve --name" in browser.text("reasons")


@pytest.mark.timeout(300)
def test_a_fleet_in_use(browser: Browser, name: str) -> None:
    """All tiers at work, a neighbour, engines of which one is killed: each has its place, with the figures of others."""
    with fleet(name, f"{name}-b", mib=48) as (address, engines):
        browser.until(lambda: _loads(browser, address))
        browser.until(lambda: [row["State"] for row in browser.rows("peers-table")] == ["usable"])
        browser.until(
            lambda: "vllm-2 scheduler" in {row["Client"] for row in browser.rows("clients-table")}
        )
        browser.until(
            lambda: {QWEN, GEMMA} == {row["Namespace"] for row in browser.rows("namespaces-table")}
        )
        engines[0].kill()
        browser.until(lambda: "(vllm-0 scheduler)" in browser.text("events"))
        for tier in ("memory", "ssd"):
            browser.until(
                lambda tier=tier: re.search(r"Hits\n(?!0 /s)", browser.text(f"{tier}-pairs"))
            )
        browser.until(lambda: browser.rows("misses-table"))
        browser.until(lambda: browser.js("document.querySelectorAll('.plot canvas').length") == 3)
        said = json.loads(pegashm("peers", "--name", name, "--json").stdout)
        peer = browser.rows("peers-table")[0]
        assert said["peers"][0]["address"] == peer["Address"]
        assert f"listening on {said['listen']}" == browser.text("peers-hint")
        browser.until(lambda: browser.text("health") == "Healthy")
        assert [] == browser.complaints()


def test_an_arena_comes_goes_and_comes_again(browser: Browser, name: str) -> None:
    with exporting(name) as address:
        browser.open(address)
        assert "Down" == browser.text("health")
        assert f"pegashm serve --name {name}" in browser.text("reasons")
        assert "No arena to show." == browser.text("map-empty")
        assert "No arena." == browser.text("clients-empty")

        make_arena(SHAPE, name)
        browser.until(lambda: browser.text("health") == "Degraded")
        assert "Nobody is attached. Blocks stay for the next engine." == browser.text(
            "clients-empty"
        )
        assert "No engine has registered one yet." == browser.text("namespaces-empty")
        with Cache.attach(name, namespace=QUIET) as cache:
            publish(cache, keys(1, 2), 4 * KIB)
            browser.until(lambda: len(browser.rows("namespaces-table")) == 1)

        remove_arena(name)
        browser.until(lambda: browser.text("health") == "Down")
        browser.until(lambda: "purged" in browser.text("events"))
        make_arena(SHAPE, name)
        browser.until(lambda: browser.text("health") == "Degraded")
        assert [] == browser.complaints()


@contextlib.contextmanager
def exporter_process(name: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "pegashm", "exporter", "--name", name]
    process = subprocess.Popen([*command, "--listen", f"127.0.0.1:{port}"])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.timeout(240)
def test_the_exporter_dies(browser: Browser, scene: Scene) -> None:
    port = free_port()
    address = f"http://127.0.0.1:{port}/"
    with exporter_process(scene[0].name, port) as process:
        browser.until(lambda: _loads(browser, address))
        assert "" == browser.text("lost")
        process.send_signal(signal.SIGKILL)
        browser.until(lambda: "does not answer" in browser.text("lost"))
        assert "Unknown" == browser.text("health")
        assert LABEL in browser.text("namespaces-table"), "the last figures stay"
    with exporter_process(scene[0].name, port):
        browser.until(lambda: browser.text("lost") == "")
        assert "Degraded" == browser.text("health")


@pytest.mark.timeout(240)
def test_the_exporter_hangs(browser: Browser, scene: Scene) -> None:
    port = free_port()
    with exporter_process(scene[0].name, port) as process:
        browser.until(lambda: _loads(browser, f"http://127.0.0.1:{port}/"))
        process.send_signal(signal.SIGSTOP)
        browser.until(lambda: "no answer in time" in browser.text("lost"))
        process.send_signal(signal.SIGCONT)
        browser.until(lambda: browser.text("lost") == "")


def _loads(browser: Browser, address: str) -> bool:
    from selenium.common.exceptions import WebDriverException

    try:
        browser.open(address)
    except WebDriverException:  # it does not listen yet
        return False
    return True

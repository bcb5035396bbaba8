"""What does watching an arena cost the engines that use it? Lookups and copies with watchers and without, alternating.

A real arena (pegashm serve) of 4 KiB blocks, all of them published; a client of it that looks keys up in batches of 256 and
copies blocks of 64 KiB out. Watchers: `pegashm exporter`, scraped every second by another process, and `pegashm top`
on a terminal of its own where this build has it, both once a second. They run all the time and are stopped (SIGSTOP) for the windows
without them, so that neither kind of window pays for their starts. Each window is long enough to have a pass over all
records in it, which `--survey-seconds 5` makes twice as often as the default; what counts is all work of a window, so what a
burst costs is in it. A window is compared with its neighbour, and the median of those pairs is told with its 95 %
interval (bootstrap): where the machine's own noise is larger than what watching costs, the interval says so. What the
watchers take themselves is told beside it, in CPU time: that figure has little noise.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pegashm import _native
from pegashm.cache import Cache
from pegashm.cli import COMMANDS
from pegashm.keys import namespace_of
from pegashm.units import KIB, MIB

from bench import harness
from bench.lookup_keys import KeySet

__all__ = ["measure"]

QUESTION = "What do an exporter scraped every second and `pegashm top` cost lookups and copies?"
NOT_SHOWN = (
    "engines on all cores at once: then watchers take the time they need from somebody",
    "a terminal that is slow to draw, the status page's browser, Prometheus itself",
)
BLOCK_BYTES = 4 * KIB
RUN_BLOCKS = 16  # copied together: 64 KiB
BATCH = 256
SURVEY_SECONDS = 5
SCRAPER = """
import sys, time, urllib.request
while True:
    began = time.monotonic()
    urllib.request.urlopen(sys.argv[1], timeout=30).read()
    time.sleep(max(0.0, 1.0 - (time.monotonic() - began)))
"""


def measure(options: harness.Options) -> harness.Findings:
    blocks = options.pick(1_000_000, 250_000, 16_000)
    rounds = options.pick(30, 5, 2)
    seconds = options.pick(6.0, 2.0, 0.2)
    name = f"bench-watching-{os.getpid()}"
    harness.progress(f"an arena of {blocks} blocks")
    with served(name, blocks) as watchers, Cache.attach(name, namespace=NAMESPACE) as cache:
        keys = KeySet(blocks, harness.SEED)
        published = fill(cache, keys)
        work = Work(cache, keys, published, seconds)
        harness.progress(f"{published} blocks; {', '.join(watchers.names)}")
        contenders: dict[str, Callable[[], float]] = {}
        for what, do in (("lookup", work.lookups), ("copy", work.copies)):
            for watched in (False, True):
                contenders[f"{what} {'watched' if watched else 'alone'}"] = watchers.during(
                    do, watched=watched
                )
        samples = harness.interleave(rounds, contenders)
        work_hash = work.hash()
    losses = {
        what: Loss.of(samples[f"{what} alone"], samples[f"{what} watched"])
        for what in ("lookup", "copy")
    }
    rows = [
        [
            f"{what}, {unit}",
            round(harness.median(samples[f"{what} alone"]) / scale, 3),
            round(harness.median(samples[f"{what} watched"]) / scale, 3),
            f"{losses[what].median:+.2%}",
            f"{losses[what].low:+.2%} to {losses[what].high:+.2%}",
        ]
        for what, unit, scale in (("lookup", "million keys/s", 1e6), ("copy", "GB/s", 1e9))
    ]
    shares = watchers.shares()
    figures = {
        "watchers": list(watchers.names),
        "blocks": published,
        "loss": {what: asdict(loss) for what, loss in losses.items()},
        "cpu_share": {name: round(share, 5) for name, share in shares.items()},
        "results": {name: [round(value) for value in values] for name, values in samples.items()},
    }
    tables = [
        harness.table(
            f"medians of {rounds} windows of {seconds:g} s, alone and watched",
            ["", "alone", "watched", "lost (target < 1 %)", "95 % interval"],
            rows,
        ),
        harness.table(
            "what a watcher takes, of one core",
            ["", "share"],
            [[name, f"{share:.2%}"] for name, share in shares.items()],
        ),
    ]
    return harness.Findings(tables, figures, work_hash)


NAMESPACE = namespace_of({"bench": "watching"}, label="bench watching")


@dataclass(frozen=True, slots=True)
class Loss:
    """What watching took, as a share: the median of pairs of windows, and the 95 % interval of that median."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, alone: list[float], watched: list[float]) -> Loss:
        pairs = 1 - np.asarray(watched) / np.asarray(alone)
        again = np.random.default_rng(harness.SEED).choice(pairs, (10_000, len(pairs)))
        low, high = np.percentile(np.median(again, axis=1), (2.5, 97.5))
        return cls(
            *(round(float(share), 5) for share in (harness.median(pairs.tolist()), low, high))
        )


def fill(cache: Cache, keys: KeySet) -> int:
    """Publish a block for each key, in nobody's time; how many found room."""
    published = 0
    for first in range(0, keys.count, 4096):
        batch = keys.keys(range(first, min(first + 4096, keys.count)))
        handles, _ = cache.claim(batch, BLOCK_BYTES)
        published += int((cache.publish(handles[handles != 0]) == _native.OK).sum())
    return published


class Work:
    """What an engine does all day. Each call works for `seconds` and returns how much was done in one of them."""

    def __init__(self, cache: Cache, keys: KeySet, published: int, seconds: float) -> None:
        self._cache = cache
        self._seconds = seconds
        chance = np.random.default_rng(harness.SEED)
        lots = min(200, keys.count // BATCH)
        self._lots = [
            keys.keys(chance.integers(0, keys.count, BATCH).tolist()) for _ in range(lots)
        ]
        self._found = 0
        run = BLOCK_BYTES * RUN_BLOCKS
        runs = min(cache.region.payload_bytes // run, 4096)
        self._into = np.zeros(256 * run, np.uint8)
        self._sources = (
            np.uint64(cache.region.payload_address)
            + chance.permutation(cache.region.payload_bytes // run)[:runs].astype(np.uint64) * run
        )
        self._targets = np.uint64(self._into.ctypes.data) + np.arange(256, dtype=np.uint64) * run
        self._sizes = np.full(256, run, np.uint64)
        self._copier = _native.Copier(1)
        if published < 0.9 * keys.count:
            raise AssertionError(f"{published} of {keys.count} blocks found room")

    def lookups(self) -> float:
        done, began = 0, time.perf_counter()
        while (spent := time.perf_counter() - began) < self._seconds:
            for lot in self._lots:
                self._found += int((self._cache.find(lot)[1] == _native.OK).sum())
            done += BATCH * len(self._lots)
        return done / spent

    def copies(self) -> float:
        done, began = 0, time.perf_counter()
        while (spent := time.perf_counter() - began) < self._seconds:
            for first in range(0, len(self._sources), 256):
                sources = self._sources[first : first + 256]
                done += self._copier.copy(
                    self._targets[: len(sources)], sources, self._sizes[: len(sources)]
                )
        return done / spent

    def hash(self) -> str:
        """Of what the lookups of one pass found, and what was copied last."""
        outcomes = b"".join(self._cache.find(lot)[1].tobytes() for lot in self._lots)
        return hashlib.blake2b(outcomes + self._into.tobytes(), digest_size=8).hexdigest()


class Watchers:
    """Processes that are stopped except while somebody is to be watched."""

    def __init__(self, processes: dict[str, subprocess.Popen[Any]]) -> None:
        self._processes = processes
        self._spent = dict.fromkeys(processes, 0.0)
        self._watched_seconds = 0.0
        self.names = tuple(processes)

    def during(self, do: Callable[[], float], *, watched: bool) -> Callable[[], float]:
        def window() -> float:
            self._send(signal.SIGCONT if watched else signal.SIGSTOP)
            time.sleep(0.1)
            before, began = self._cpu_seconds(), time.monotonic()
            done = do()
            if watched:
                self._watched_seconds += time.monotonic() - began
                for name, seconds in self._cpu_seconds().items():
                    self._spent[name] += seconds - before[name]
            return done

        return window

    def shares(self) -> dict[str, float]:
        """CPU time of each while it watched, as a share of one core."""
        return {name: spent / self._watched_seconds for name, spent in self._spent.items()}

    def _cpu_seconds(self) -> dict[str, float]:
        return {
            name: harness.cpu_seconds([process.pid]) for name, process in self._processes.items()
        }

    def _send(self, sent: signal.Signals) -> None:
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise SystemExit(f"{name} ended with status {process.returncode}")
            process.send_signal(sent)


@contextlib.contextmanager
def served(name: str, blocks: int) -> Iterator[Watchers]:
    """An arena with its supervisor, and what watches it."""
    size = blocks * BLOCK_BYTES * 5 // 4 + 64 * MIB + blocks * 320
    pegashm = [sys.executable, "-m", "pegashm"]
    with contextlib.ExitStack() as stack:
        serve = subprocess.Popen(
            [
                *pegashm,
                "serve",
                "--name",
                name,
                "--size",
                str(size),
                "--block-min",
                "4K",
                "--ephemeral",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        stack.callback(end, serve)
        wait_populated(name, serve)
        exporter = subprocess.Popen(
            [
                *pegashm,
                "exporter",
                "--name",
                name,
                "--listen",
                "127.0.0.1:0",
                "--survey-seconds",
                str(SURVEY_SECONDS),
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        stack.callback(end, exporter)
        assert exporter.stderr is not None
        line = exporter.stderr.readline()
        url = f"http://{line.partition('http://')[2].strip()}"
        scraper = subprocess.Popen([sys.executable, "-c", SCRAPER, url], stderr=subprocess.DEVNULL)
        stack.callback(end, scraper)
        processes: dict[str, subprocess.Popen[Any]] = {
            "pegashm exporter": exporter,
            "a scraper": scraper,
        }
        if "top" in COMMANDS:
            top = on_a_terminal([*pegashm, "top", "--name", name, "--interval", "1"], stack)
            processes["pegashm top"] = top
        yield Watchers(processes)


def wait_populated(name: str, serve: subprocess.Popen[Any]) -> None:
    from pegashm.status import read_status

    while True:
        report = read_status(name)
        if report.segment_count and report.segments_ready == report.segment_count:
            return
        if serve.poll() is not None:
            raise SystemExit(f"pegashm serve ended with status {serve.returncode}: enough memory?")
        time.sleep(0.1)


def on_a_terminal(command: list[str], stack: contextlib.ExitStack) -> subprocess.Popen[Any]:
    """A process that thinks somebody looks; what it draws is read and thrown away."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower)
    os.close(follower)

    def drain() -> None:
        with contextlib.suppress(OSError):
            while os.read(leader, 65536):
                pass

    threading.Thread(target=drain, daemon=True).start()
    stack.callback(os.close, leader)
    stack.callback(end, process)
    return process


def end(process: subprocess.Popen[Any]) -> None:
    process.send_signal(signal.SIGCONT)
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


if __name__ == "__main__":
    harness.run("watching", QUESTION, not_shown=NOT_SHOWN, measure=measure)

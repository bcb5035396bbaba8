"""Models made once, arenas and engines that are gone when their test is: what the end-to-end tests share.

Skipped as a whole where vLLM is not installed. A start of an engine is 10 to 30 s on a small machine and
all else is quick: hence one engine without us for the whole session (`expected`), and engines that several
tests of one module share.
"""

from __future__ import annotations

import importlib.util
import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pegashm.arena import Arena, open_arena
from pegashm.units import MIB

from tests.arenas import Shape, make_arena, remove_arena
from tests.e2e.engines import Child, Engine

MODEL_MAKER = Path(__file__).parents[1] / "models" / "make_model.py"
ARENA = Shape(segment_bytes=4 * MIB, segments_per_arena=(32,))
TIMEOUT_SECONDS = 1800

Start = Callable[..., Any]
Models = Callable[..., Path]
Expected = Callable[..., list[list[int]]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    installed = importlib.util.find_spec("vllm") is not None
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.engine)
            item.add_marker(pytest.mark.timeout(TIMEOUT_SECONDS))
            if not installed:
                item.add_marker(pytest.mark.skip(reason="vLLM is not installed"))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Tiny models with random weights, each made when first asked for."""
    folder = tmp_path_factory.mktemp("models")

    def model(kind: str, seed: int = 0) -> Path:
        path = folder / f"{kind}-{seed}"
        if not path.exists():
            command = [sys.executable, str(MODEL_MAKER), kind, str(path), "--seed", str(seed)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert 0 == done.returncode, done.stderr[-3000:]
        return path

    return model


class Starter:
    """Starts children, each with a log of its own, and ends them all at the end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count()
        self._children: list[Child] = []

    def __call__(
        self, kind: Callable[..., Child], *arguments: Any, log: str = "", **options: Any
    ) -> Child:
        path = self._folder / f"{log or f'{kind.__name__}-{next(self._numbers)}'}.log"
        self._children.append(kind(*arguments, path, **options))
        return self._children[-1]

    def end(self) -> None:
        for child in reversed(self._children):
            child.kill()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """start(Engine | Server | Supervisor, ...): whatever still runs at the end of the test is killed."""
    starter = Starter(tmp_path)
    yield starter
    starter.end()


@pytest.fixture(scope="module")
def start_shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """As `start`, until the end of the module."""
    starter = Starter(tmp_path_factory.mktemp("engines"))
    yield starter
    starter.end()


@pytest.fixture(scope="session")
def expected(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Expected]:
    """expected(*prompts): the tokens of an engine without us, on the Qwen3 model."""
    engine: Engine | None = None

    def tokens(*prompts: list[int]) -> list[list[int]]:
        nonlocal engine
        if engine is None:
            log = tmp_path_factory.mktemp("alone") / "alone.log"
            engine = Engine(models("qwen3"), None, log).ready()
        return [engine.ask(prompt)[0].tokens for prompt in prompts]

    yield tokens
    if engine is not None:
        engine.kill()


@pytest.fixture
def big_arena() -> Iterator[Arena]:
    """128 MiB, of which only what is used costs memory; nobody supervises it."""
    yield from _arena()


@pytest.fixture(scope="session")
def shared_arena() -> Iterator[Arena]:
    """As `big_arena`, until the end of the session."""
    yield from _arena()


@pytest.fixture(scope="session")
def neighbour(
    models: Models, shared_arena: Arena, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    """An engine with default settings on the shared arena, for others to be compared with."""
    log = tmp_path_factory.mktemp("neighbour") / "neighbour.log"
    engine = Engine(models("qwen3"), shared_arena.name, log)
    yield engine.ready()
    engine.kill()


def _arena() -> Iterator[Arena]:
    name = make_arena(ARENA)
    try:
        with open_arena(name) as arena:
            yield arena
    finally:
        remove_arena(name)

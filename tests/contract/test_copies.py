"""Does the model thread ever wait for a copy that nobody makes?

`wait` and `get_finished` are the calls in which vLLM waits for bytes. The thread that copies goes on after any error;
should it be gone all the same, its jobs end as failed and what they would have loaded is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pegashm.cache import Cache, Copyist

from tests.connector.engines import blocks_of, claim, gpu_blocks
from tests.contract.rig import LAYOUT, NAMESPACE, Figures, Rig

Make = Callable[..., Rig]
LOAD, STORE = 1000, 1001


@pytest.fixture
def ready(arena_name: Callable[..., str]) -> Any:
    """A client with two pinned blocks to load and two claimed ones to store to."""
    with Cache.attach(arena_name(), namespace=NAMESPACE) as cache:
        stored = claim(cache, LAYOUT, 2)
        cache.publish(stored)
        cache.pin(stored)
        yield cache, stored, claim(cache, LAYOUT, 2, start=2)


def submit(engine: Rig, ready: Any) -> None:
    cache, stored, claimed = ready
    engine.call(
        "submit_load",
        engine.worker.submit_load,
        LOAD,
        blocks_of(cache, stored),
        gpu_blocks([[0, 1]]),
    )
    engine.call(
        "submit_store",
        engine.worker.submit_store,
        STORE,
        gpu_blocks([[2, 3]]),
        blocks_of(cache, claimed),
    )


def ended(engine: Rig) -> set[int]:
    engine.call("wait", engine.worker.wait, {LOAD, STORE})
    return {result.job_id for result in engine.call("get_finished", engine.worker.get_finished)}


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, SystemExit, KeyboardInterrupt])
def test_a_copy_that_ends_in_any_error(
    error: type[BaseException], rig: Make, ready: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = rig(ready[0].name)

    def fails(*_arguments: object) -> None:
        raise error

    monkeypatch.setattr(Copyist, "serve", fails)
    submit(engine, ready)
    assert {LOAD, STORE} == ended(engine)
    assert {LOAD} == engine.worker.failed_jobs
    monkeypatch.undo()
    engine.worker.failed_jobs.clear()
    submit(engine, ready)
    assert {LOAD, STORE} == ended(engine)
    assert not engine.worker.failed_jobs


def test_a_copying_thread_that_is_gone(rig: Make, ready: Any, figures: Figures) -> None:
    engine = rig(ready[0].name)
    engine.worker._jobs.put(None)
    engine.worker._thread.join()
    submit(engine, ready)
    assert {LOAD, STORE} == ended(engine)
    assert {LOAD} == engine.worker.failed_jobs
    assert not np.any(ready[0].publish(ready[2], 1) == 0), "nobody wrote them"


def test_one_that_dies_before_vllm_asks(rig: Make, ready: Any) -> None:
    """No wait(): the request waits for its load until get_finished() says that it is over."""
    engine = rig(ready[0].name)
    engine.worker._jobs.put(None)
    engine.worker._thread.join()
    submit(engine, ready)
    results = engine.call("get_finished", engine.worker.get_finished)
    assert {LOAD, STORE} == {result.job_id for result in results}

"""Does any call of an engine wait, or fail, when its arena is removed, replaced, or not an arena any more?

Nothing of this is done by PegaShm itself while an engine is attached (`purge` refuses); `purge --force`, `rm` and
other hands do. Files are never cut short, which would kill whoever maps them: that is not promised.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pegashm.arena import open_arena
from pegashm.creation import purge
from pegashm.errors import ArenaBusyError
from pegashm.names import control_path

from tests.arenas import Shape, make_arena
from tests.contract.rig import Figures, Rig

Make = Callable[..., Rig]
STEPS = 15


def unlink_all(name: str) -> None:
    for path in Path("/dev/shm").glob(f"pegashm.{name}.*"):
        path.unlink()


def unlink_payload(name: str) -> None:
    """The payload's name is gone, the control object's is not: who attaches anew sees a damaged arena."""
    with open_arena(name) as arena:
        paths = [entry["path"] for entry in arena.region.header["arenas"]]
    for path in paths:
        os.unlink(path)


def replace_by(content: bytes, mode: int = 0o600) -> Callable[[str], None]:
    def replace(name: str) -> None:
        unlink_all(name)
        path = Path(control_path(name))
        path.write_bytes(content)
        path.chmod(mode)

    return replace


def replace_by_fifo(name: str) -> None:
    unlink_all(name)
    os.mkfifo(control_path(name))


def replace_by_folder(name: str) -> None:
    unlink_all(name)
    os.mkdir(control_path(name))


WAYS: dict[str, Callable[[str], object]] = {
    "purged": lambda name: purge(name, force=True),
    "unlinked": unlink_all,
    "payload unlinked": unlink_payload,
    "not ready": replace_by(bytes(8192)),
    "empty": replace_by(b""),
    "of another format": replace_by(b"PEGASHM1" + bytes([99, 0]) + bytes(8182)),
    "something else": replace_by(os.urandom(8192)),
    "not readable": replace_by(bytes(8192), mode=0),
    "a fifo": replace_by_fifo,
    "a folder": replace_by_folder,
}


@pytest.mark.parametrize("gpu", [False, True], ids=["cpu", "gpu"])
@pytest.mark.parametrize("way", WAYS)
def test_the_arena_goes_and_comes_back(
    way: str, gpu: bool, rig: Make, arena_name: Callable[..., str], figures: Figures
) -> None:
    name = arena_name(Shape())
    engine = rig(name, gpu=gpu)
    engine.until_hits()
    WAYS[way](name)
    engine.steps(STEPS)
    late = rig(name)
    late.steps(STEPS)
    clear(name)
    again(name)
    engine.until_hits()
    late.until_hits()
    assert engine.attachment.cache is not None
    assert engine.attachment.cache.arena.is_linked()


def test_an_arena_that_changes_all_the_time(
    rig: Make, arena_name: Callable[..., str], figures: Figures
) -> None:
    """Purged and made anew between the steps, and in the middle of them: after prepare, before the copy."""
    name = arena_name(Shape())
    engine = rig(name)
    submit = engine.worker._submit

    def purge_first(*arguments: object, **named: object) -> object:
        if engine.chance.random() < 0.3:
            again(name)
        return submit(*arguments, **named)

    engine.worker._submit = purge_first
    for _ in range(10):
        engine.steps(8)
        purge(name, force=True)
        engine.steps(2)
        again(name)
    engine.worker._submit = submit
    engine.until_hits()


def test_nothing_is_made_over_what_is_there(arena_name: Callable[..., str]) -> None:
    """In place it would be another arena under the feet of whoever is attached, and nobody would be told."""
    name = arena_name(Shape())
    with open_arena(name) as arena:
        before = arena.region.header["region_id"]
        with pytest.raises(ArenaBusyError, match="is there already"):
            make_arena(Shape(), name=name)
    with open_arena(name) as arena:
        assert before == arena.region.header["region_id"]


def test_whoever_leaves_last_does_not_wait_for_the_memory(
    rig: Make, arena_name: Callable[..., str]
) -> None:
    """The last process that lets go of a purged arena frees it: in a thread of its own, not in the step."""
    name = arena_name(Shape())
    engine = rig(name)
    engine.until_hits()
    cache = engine.attachment.cache
    assert cache is not None
    close, closed, let_go = cache.close, [], threading.Event()

    def close_slowly() -> None:
        let_go.wait(60)
        close()
        closed.append(True)

    cache.close = close_slowly  # type: ignore[method-assign]
    purge(name, force=True)
    engine.steps(3)
    assert engine.attachment.cache is None
    assert not closed
    let_go.set()
    while not closed:
        time.sleep(0.01)
    assert cache.region.closed


def clear(name: str) -> None:
    path = Path(control_path(name))
    if path.is_dir():
        path.rmdir()
    elif not path.is_file():
        path.unlink(missing_ok=True)
    else:
        path.chmod(0o600)
        unlink_all(name)


def again(name: str) -> None:
    """Another arena of that very name, whatever has it now."""
    purge(name, force=True)
    made = make_arena(Shape(), name=name)
    assert made == name

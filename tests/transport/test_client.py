"""Can the engine's side of the conversation be dropped anywhere, without anybody waiting for it?"""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable

from pegashm.transport.client import TransportClient

from tests.transport.rig import PATIENCE_SECONDS, Rig, eventually


def test_dropped_unclosed_as_part_of_a_cycle(rig: Callable[..., Rig]) -> None:
    """The garbage collector meets socket and context in any order; it once waited for ever in the context's end."""
    one = rig().start()

    class Engine:
        def __init__(self) -> None:
            self.itself = self
            self.client = TransportClient(one.arena)

    def drop() -> None:
        for _ in range(5):
            assert Engine().client.alive
            gc.collect()

    thread = threading.Thread(target=drop, daemon=True)
    thread.start()
    thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive(), "the collector waits"


def test_a_forked_child_asks_for_nothing_and_ends(rig: Callable[..., Rig]) -> None:
    """Its parent's socket is left alone: the parent's next request is answered."""
    one = rig().start()
    keys = one.store(range(4))
    one.wait_stored(4)
    eventually(lambda: one.client.alive)
    child = os.fork()
    if not child:
        taken = one.client.promote(keys, one.cache.namespace_id, 1000)
        one.client.close()
        os._exit(0 if taken is None else 1)
    assert (child, 0) == os.waitpid(child, 0)
    assert {0} == set(one.promote(keys))

"""Does a router that listens to a real engine know what the engine can load, whatever other processes do?

vLLM's own server publishes its KV events over ZeroMQ, as for llm-d or Dynamo; the test is the router: it keeps an index
from what it hears and compares it with the region, read record by record. A model with two KV groups. Blocks come and go
by the engine itself, by an engine next to it that publishes nothing, by eviction, by the transport worker and by purge.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from pegashm.arena import open_arena
from pegashm.cache import Cache

from tests.admin.scenes import said
from tests.e2e.engines import (
    OPTIONS,
    Child,
    Engine,
    Server,
    Supervisor,
    engine_environment,
    new_prompt,
    transfer_config,
)
from tests.e2e.test_spill import evict_all, figure, until, worker
from tests.ports import free_port

PATIENCE_S = 60.0
# (group, hash, medium): what an index of a router is made of.
Entry = tuple[int, Any, str]
MEDIA = ("CPU", "STORAGE")


class Router:
    """A subscriber that believes what it hears. Of what the engine has on its device it keeps no account."""

    def __init__(self, endpoint: str) -> None:
        import msgspec
        from vllm.distributed.kv_events import KVEventBatch

        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 20)
        self._socket.subscribe(b"")
        self._socket.connect(endpoint)
        self._decoder = msgspec.msgpack.Decoder(KVEventBatch)
        self._next: int | None = None
        self.index: set[Entry] = set()
        self.heard: Counter[str] = Counter()

    def hear(self) -> None:
        while self._socket.poll(50):
            _, number, body = self._socket.recv_multipart()
            sequence = int.from_bytes(number, "big")
            assert self._next in (None, sequence), "batches were lost"
            self._next = sequence + 1
            for event in self._decoder.decode(body).events:
                self._take(event)

    def _take(self, event: Any) -> None:
        kind = type(event).__name__
        if kind == "AllBlocksCleared" or event.medium not in MEDIA:
            return
        self.heard[f"{kind} {event.medium}"] += 1
        assert "LOCAL" == event.locality
        entries = {(event.group_idx, block_hash, event.medium) for block_hash in event.block_hashes}
        if kind == "BlockStored":
            assert not entries & self.index, "stored twice"
            self.index |= entries
        else:
            assert entries <= self.index, "removed, and never stored"
            self.index -= entries

    def hear_until(self, expected: Callable[[], set[Entry]]) -> set[Entry]:
        """Until it knows what is there, which may change meanwhile; what that is."""
        until_s = time.monotonic() + PATIENCE_S
        while True:
            self.hear()
            known, there = self.index, expected()
            if known == there:
                return there
            if time.monotonic() > until_s:
                missing, surplus = there - known, known - there
                raise AssertionError(f"it lacks {len(missing)} and has {len(surplus)} too many")

    def close(self) -> None:
        self._context.destroy(linger=0)


class PublishingServer(Server):
    """vLLM's own server, publishing KV events, also while it has no requests."""

    def __init__(self, model: Path, arena: str, log: Path, *, endpoint: str) -> None:
        self.port = free_port()
        publishing = {"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": endpoint}
        transfer = transfer_config({"kv_events_while_idle": True})
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
        command += ["--model", str(model), "--served-model-name", "tiny", "--port", str(self.port)]
        command += ["--host", "127.0.0.1", "--dtype", "float32", "--enforce-eager"]
        command += ["--max-model-len", "4096", "--enable-prompt-tokens-details"]
        command += ["--kv-transfer-config", json.dumps(transfer)]
        command += ["--kv-events-config", json.dumps(publishing)]
        environment = engine_environment(arena, {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"})
        Child.__init__(self, command, log, environment)


@pytest.fixture
def router(tmp_path: Path) -> Iterator[Router]:
    one = Router(f"ipc://{tmp_path}/events")
    yield one
    one.close()


def what_is_there(name: str, label: str) -> set[Entry]:
    """The blocks of the one namespace of that model, by group, hash as events have it, and medium."""
    from vllm.v1.core.kv_cache_utils import BlockHash, maybe_convert_block_hash

    with open_arena(name) as arena:
        (namespace,) = (
            row["id"] for row in arena.region.namespaces() if row["label"].startswith(label)
        )
        blocks = arena.region.blocks()
        spilled = arena.region.spilled()
        usable = arena.region.header["spill_usable"]
        tiers = (("CPU", blocks[blocks["state"] == 2]), ("STORAGE", spilled if usable else []))
        return {
            (
                int(row["group"]),
                maybe_convert_block_hash(BlockHash(bytes(row["key"])[: int(row["key_bytes"])])),
                medium,
            )
            for medium, rows in tiers
            for row in rows
            if row["namespace_id"] == namespace
        }


def test_a_router_knows_what_an_engine_can_load(
    models: Callable[..., Path],
    start: Callable[..., Any],
    name: str,
    router: Router,
    tmp_path: Path,
) -> None:
    spill = ("--spill", str(tmp_path / "blocks.spill"), "--spill-size", "64M")
    supervisor = start(
        Supervisor, name, "16M", options=("--segment-size", "4M", "--no-lock", *spill)
    )
    supervisor.ready()
    until(lambda: worker(name) != 0)
    model = models("gemma3")
    endpoint = f"ipc://{tmp_path}/events"
    server: Server = start(PublishingServer, model, name, endpoint=endpoint)
    neighbour: Engine = start(Engine, model, name, options=OPTIONS["gemma3"])
    server.ready()
    neighbour.ready()

    def there() -> set[Entry]:
        return what_is_there(name, model.name)

    for number in range(3):
        server.ask(new_prompt(f"own {number}"))
    own = router.hear_until(there)
    assert {0, 1} <= {group for group, _, _ in own}, "not all groups were told"

    # The neighbour stores more than there is room for, and so evicts what the server stored; the worker spills it.
    for number in range(8):
        neighbour.ask(new_prompt(f"theirs {number}"))
    until(lambda: figure(name, "spill_stored") > 0)
    both = router.hear_until(there)
    assert both - own
    assert {"CPU", "STORAGE"} == {medium for _, _, medium in both}
    assert router.heard["BlockRemoved CPU"]

    evict_all(name)
    assert {"STORAGE"} == {medium for _, _, medium in router.hear_until(there)}
    neighbour.forget()
    neighbour.ask(new_prompt("theirs 0"))  # comes back from SSD, for both
    assert any(medium == "CPU" for _, _, medium in router.hear_until(there))

    supervisor.stop()
    subprocess.run(
        [sys.executable, "-m", "pegashm", "purge", "--name", name, "--yes", "--force"],
        check=True,
        capture_output=True,
    )
    router.hear_until(set)
    assert 0 == len(router.index)


def test_an_engine_that_sleeps_tells_it_in_its_next_step(
    models: Callable[..., Path],
    start: Callable[..., Any],
    big_arena: Any,
    router: Router,
    tmp_path: Path,
) -> None:
    """By default no event comes from an engine without requests; the next one brings all that happened."""
    name = big_arena.name
    model = models("qwen3")
    endpoint = f"ipc://{tmp_path}/events"
    engine: Engine = start(
        Engine,
        model,
        name,
        extra={"self_describing_kv_events": True},
        options={"kv_events_config": {"enable_kv_cache_events": True, "endpoint": endpoint}},
    ).ready()

    def there() -> set[Entry]:
        return what_is_there(name, model.name)

    engine.ask(new_prompt("a"))
    before = router.hear_until(there)
    assert before
    with Cache.attach(name, namespace=None, label="evicts") as cache:
        blocks = cache.region.blocks()[:2]
        handles = (blocks["generation"] << 24 | blocks["record"]).astype("uint64")
        assert not cache.evict(handles).any()
    router.hear()
    assert before == router.index
    engine.ask(new_prompt("b", 20))  # too short to be stored
    assert len(before) - 2 == len(router.hear_until(there))

    assert 0 == said("drop", "--name", name, "--all", "--yes")["exit_status"]
    engine.ask(new_prompt("c", 20))
    assert not router.hear_until(there)

"""Who is measured, up and running: a store's servers and two clients of it, each in the environment that it needs.

`Contender` starts and stops them; `passes` and `lookups` are what it is asked in one round. Rates of two clients are those of all bytes from
the moment both begin until the last has ended.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, final

from bench.rivals.catalog import Form, Rival
from bench.rivals.store import Servers
from bench.rivals.workers import Client

__all__ = ["CHAINS", "CHAIN_BLOCKS", "Contender"]

CHAINS, CHAIN_BLOCKS, CHAIN_BLOCK_BYTES = 4, 1000, 4096
MISSING_FROM = 1 << 40  # blocks that nobody puts
GATE_SECONDS = 0.02  # for a command to reach both clients
PASS_SECONDS = 120


@final
class Contender:
    """One form of a store. Servers may be shared by the forms of one leg: whoever makes them stops them."""

    def __init__(
        self, rival: Rival, form: Form, servers: Servers | None, folder: str, buffer_bytes: int
    ) -> None:
        self.rival, self.form, self.servers = rival, form, servers
        self.folder = folder
        self.buffer_bytes = buffer_bytes
        self.numbers = itertools.count(1)
        # No number is used twice, not by another form of the same store either.
        self.blocks = itertools.count((1 + rival.forms.index(form)) << 28, 1 << 14)
        self.clients: list[Client] = []

    @property
    def title(self) -> str:
        return self.form.title

    def client(self) -> Client:
        """One more client, ready."""
        number = next(self.numbers)
        config = {} if self.servers is None else dict(self.servers.config(number))
        client = Client(
            self.rival.python,
            self.rival.module,
            {**config, **self.form.config},
            buffer_bytes=self.buffer_bytes,
            log=str(Path(self.folder) / f"client-{number}.log"),
            environment=self.rival.environment,
        )
        self.clients.append(client)
        client.wait_until_ready()
        return client

    def __enter__(self) -> Contender:
        try:
            while len(self.clients) < 2:
                self.client()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for client in self.clients:
            with contextlib.suppress(OSError):
                client.close()

    # -- lookups -------------------------------------------------------------------------------

    def fill_chains(self) -> None:
        """Put the small blocks that lookups ask for."""
        client = self.clients[0]
        client.ask("prepare", block_bytes=CHAIN_BLOCK_BYTES)
        self.chains = [next(self.blocks) for _ in range(CHAINS)]
        for chain in self.chains:
            client.ask(
                "put",
                first=chain,
                count=CHAIN_BLOCKS,
                block_bytes=CHAIN_BLOCK_BYTES,
                a_call=CHAIN_BLOCKS,
                seconds=PASS_SECONDS,
            )

    def empty_chains(self) -> None:
        for chain in self.chains:
            self.clients[0].ask("delete", first=chain, count=CHAIN_BLOCKS, seconds=PASS_SECONDS)

    def lookups(self, count: int, *, hit: bool, calls: int) -> list[int]:
        """Nanoseconds of each of so many calls."""
        missing = [MISSING_FROM + (i << 16) for i in range(64)]
        taken: list[int] = self.clients[0].ask(
            "exists", chains=self.chains if hit else missing, count=count, calls=calls, hit=hit
        )["ns"]
        return taken

    # -- copies --------------------------------------------------------------------------------

    def prepare(self, block_bytes: int) -> None:
        for client in self.clients:
            client.ask("prepare", block_bytes=block_bytes)

    def passes(self, clients: int, block_bytes: int, count: int, a_call: int) -> dict[str, Any]:
        """Put and get `count` blocks by each client, the other one's where it can: GB/s of both, and call times."""
        asked = self.clients[:clients]
        firsts = [next(self.blocks) for _ in asked]
        what = {"count": count, "block_bytes": block_bytes, "a_call": a_call}
        put = self._together(asked, "put", firsts, what)
        theirs = firsts[::-1] if self.form.shared_names else firsts
        got = self._together(asked, "get", theirs, what)
        for client, first in zip(asked, firsts, strict=True):
            client.ask("delete", first=first, count=count, seconds=PASS_SECONDS)
        total = clients * count * block_bytes
        return {
            "put": total / _span_ns(put),
            "get": total / _span_ns(got),
            "put_ns": [ns for answer in put for ns in answer["ns"]],
            "get_ns": [ns for answer in got for ns in answer["ns"]],
            "missing": sum(count - answer["came"] for answer in got),
            "wrong": sum(answer["wrong"] for answer in got),
        }

    def _together(
        self, asked: Sequence[Client], do: str, firsts: Sequence[int], what: dict[str, int]
    ) -> list[dict[str, Any]]:
        at = time.monotonic() + GATE_SECONDS if len(asked) > 1 else 0.0
        for client, first in zip(asked, firsts, strict=True):
            client.tell(do, first=first, at=at, **what)
        answers = [client.hear(PASS_SECONDS) for client in asked]
        for answer in answers:
            if "error" in answer:
                raise RuntimeError(f"{do}: {answer['error']}")
        return answers


def _span_ns(answers: Sequence[dict[str, Any]]) -> int:
    began = min(answer["began"] for answer in answers)
    return max(int(answer["ended"]) for answer in answers) - int(began)

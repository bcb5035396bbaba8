"""Which hosts are registered in etcd, and how are we? One key a host, under a lease that we keep alive.

etcd v3 through its own JSON gateway, by plain HTTP from the standard library: no client package is needed. Our key
(PREFIX/ADDRESS) lives as long as its lease, ten seconds beyond our last sign of life: a host that dies leaves the
list by itself. A watch tells of changes at once; the list is read again then, and every ten seconds anyway. An etcd that
is away leaves the list as it was. Two threads a source: one keeps and reads, one watches.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any, Final

from pegashm.errors import ConfigError
from pegashm.logs import tell
from pegashm.notices import PEERS_ENTRY_BAD, PEERS_LIST_KEPT
from pegashm.peers.addresses import Address, parse_address
from pegashm.peers.membership import Source

__all__ = ["Etcd"]

_LEASE_SECONDS: Final = 10
_KEEP_SECONDS: Final = 3.0
_READ_SECONDS: Final = 10.0
_TIMEOUT_SECONDS: Final = 3.0
_ANSWER_BYTES_MAX: Final = 16 << 20
_LINE_BYTES_MAX: Final = 16 << 20
_MEMBERS_MAX: Final = 8192


class Etcd(Source):
    """One prefix of one etcd cluster, reached by any of its endpoints."""

    def __init__(
        self, endpoints: Sequence[Address], prefix: str, register: Address, label: str
    ) -> None:
        self._endpoints = list(endpoints)
        self._prefix = f"{prefix}/"
        self._register = register
        self._label = label
        self._addresses: frozenset[Address] = frozenset()
        self._failing = False
        self._changed = threading.Event()
        self._watch_mutex = threading.Lock()
        self._watching: socket.socket | None = None
        self._lease = 0

    def addresses(self) -> frozenset[Address]:
        return self._addresses

    def run(self, stopping: threading.Event) -> None:
        watcher = threading.Thread(target=self._watch, args=(stopping,), daemon=True)
        watcher.start()
        read_at = 0.0
        while not stopping.is_set():
            try:
                self._keep()
                if self._changed.is_set() or time.monotonic() >= read_at:
                    self._changed.clear()
                    self._read()
                    read_at = time.monotonic() + _READ_SECONDS
                self._failing = False
            except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException) as error:
                self._trouble(error)
            self._changed.wait(_KEEP_SECONDS if not self._failing else 1.0)
        self._leave()
        self._end_watch()
        watcher.join(_TIMEOUT_SECONDS)

    def stop(self) -> None:
        self._changed.set()
        self._end_watch()

    # -- keeping our key, reading the others' --------------------------------------------------------

    def _keep(self) -> None:
        if self._lease:
            answer = self._post("lease/keepalive", {"ID": str(self._lease)})
            if int(answer.get("result", answer).get("TTL", 0)) > 0:
                return
        granted = self._post("lease/grant", {"TTL": str(_LEASE_SECONDS)})
        self._lease = int(granted["ID"])
        value = json.dumps({"address": str(self._register), "label": self._label})
        self._post(
            "kv/put",
            {
                "key": _b64(f"{self._prefix}{self._register}"),
                "value": _b64(value),
                "lease": str(self._lease),
            },
        )

    def _read(self) -> None:
        answer = self._post("kv/range", self._range() | {"limit": str(_MEMBERS_MAX)})
        addresses = set()
        for entry in answer.get("kvs", []):
            key = base64.b64decode(entry["key"]).decode(errors="replace")
            try:
                addresses.add(
                    parse_address(key.removeprefix(self._prefix), f"the etcd key {key!r}")
                )
            except ConfigError as error:
                tell(PEERS_ENTRY_BAD, "%s: passed over", error, subject=key)
        self._addresses = frozenset(addresses)

    def _leave(self) -> None:
        if self._lease:
            # Should that fail, it ends by itself in a few seconds.
            with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
                self._post("lease/revoke", {"ID": str(self._lease)})

    def _range(self) -> dict[str, str]:
        end = self._prefix[:-1] + chr(ord(self._prefix[-1]) + 1)
        return {"key": _b64(self._prefix), "range_end": _b64(end)}

    # -- watching --------------------------------------------------------------------------------------

    def _watch(self, stopping: threading.Event) -> None:
        while not stopping.is_set():
            # What is wrong the other thread says.
            with contextlib.suppress(
                OSError, ValueError, AttributeError, http.client.HTTPException
            ):
                self._watch_once(stopping)
            stopping.wait(1.0)

    def _watch_once(self, stopping: threading.Event) -> None:
        endpoint = self._endpoints[0]
        connection = http.client.HTTPConnection(
            endpoint.host, endpoint.port, timeout=_TIMEOUT_SECONDS
        )
        try:
            body = json.dumps({"create_request": self._range()})
            connection.request("POST", "/v3/watch", body)
            answer = connection.getresponse()
            if answer.status != 200:
                raise ValueError(f"etcd answered {answer.status} to a watch")
            with self._watch_mutex:
                self._watching = connection.sock
            if connection.sock is not None:
                connection.sock.settimeout(None)
            self._changed.set()  # what happened before the watch began
            while not stopping.is_set():
                line = answer.readline(_LINE_BYTES_MAX)
                if not line:
                    return
                if "events" in json.loads(line).get("result", {}):
                    self._changed.set()
        finally:
            with self._watch_mutex:
                self._watching = None
            connection.close()

    def _end_watch(self) -> None:
        with self._watch_mutex:
            if self._watching is not None:
                with contextlib.suppress(OSError):
                    self._watching.shutdown(socket.SHUT_RDWR)

    # -- requests ----------------------------------------------------------------------------------------

    def _post(self, what: str, body: dict[str, str]) -> dict[str, Any]:
        endpoint = self._endpoints[0]
        connection = http.client.HTTPConnection(
            endpoint.host, endpoint.port, timeout=_TIMEOUT_SECONDS
        )
        try:
            connection.request("POST", f"/v3/{what}", json.dumps(body))
            answer = connection.getresponse()
            text = answer.read(_ANSWER_BYTES_MAX)
            if answer.status != 200:
                raise ValueError(f"etcd answered {answer.status}: {text[:200]!r}")
            said = json.loads(text)
            if not isinstance(said, dict):
                raise TypeError(f"etcd answered {text[:200]!r}")
            return said
        finally:
            connection.close()

    def _trouble(self, error: Exception) -> None:
        if not self._failing:
            tell(
                PEERS_LIST_KEPT,
                "etcd at %s: %s. The hosts known stay; it is tried again",
                self._endpoints[0],
                error or type(error).__name__,
            )
        self._failing = True
        self._endpoints.append(self._endpoints.pop(0))
        self._end_watch()


def _b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()

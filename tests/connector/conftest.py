"""What the connector's tests share: an attached cache on an arena of its own.

Without vLLM, only the files that need neither it nor torch are collected.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator

import pytest

from pegashm.cache import Cache
from pegashm.keys import Namespace, namespace_of

NAMESPACE: Namespace = namespace_of({"test": "connector"}, label="test")

if importlib.util.find_spec("vllm") is None:
    collect_ignore = [
        "test_accounts.py",
        "test_events.py",
        "test_gpu_worker.py",
        "test_host_region.py",
        "test_integrity.py",
        "test_manager.py",
        "test_namespace.py",
        "test_promotions.py",
        "test_registration.py",
        "test_trace.py",
        "test_workers.py",
    ]


@pytest.fixture
def attach() -> Iterator[Callable[[str], Cache]]:
    """Attaches a client to an arena; all are closed when the test ends."""
    caches: list[Cache] = []

    def attached(name: str) -> Cache:
        caches.append(Cache.attach(name, namespace=NAMESPACE, label="test"))
        return caches[-1]

    yield attached
    for cache in caches:
        cache.close()

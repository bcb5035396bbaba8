"""What the connector's tests share: an attached cache on an arena of its own. Without vLLM they are skipped."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

pytest.importorskip("vllm", reason="the connector needs vLLM")

from pegashm.cache import Cache
from pegashm.keys import Namespace, namespace_of

NAMESPACE: Namespace = namespace_of({"test": "connector"}, label="test")


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

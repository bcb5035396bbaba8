"""How does a vLLM engine's side see the world change? Through the very `Attachment` of its scheduler.

In the test's own process, since importing vLLM takes most of the time that these tests may take: the other
side of every scenario is real processes. Imported only where vLLM is installed.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator

from pegashm.cache import Mode
from pegashm.connector import attachment as attachment_module
from pegashm.connector.attachment import Attachment
from pegashm.connector.settings import Settings
from pegashm.errors import PegaShmError

from tests.world.actor import NAMESPACE, PAYLOAD_BYTES, key_of, payload_of

__all__ = ["Engine"]


class Engine:
    """An engine that started whatever the state of its arena, as PEGASHM_REQUIRED=0 asks."""

    def __init__(self, name: str) -> None:
        self._log = io.StringIO()
        self._handler = logging.StreamHandler(self._log)
        attachment_module.logger.addHandler(self._handler)
        self.attachment = Attachment(settings(name, required=False), NAMESPACE, "engine")

    @staticmethod
    def refused(name: str) -> str:
        """What an engine that requires its arena says when it ends at start."""
        try:
            Attachment(settings(name, required=True), NAMESPACE, "engine").close()
        except PegaShmError as error:
            return str(error)
        raise AssertionError("it started")

    @property
    def attached(self) -> bool:
        return self.attachment.cache is not None

    def look(self) -> bool:
        """As at the end of an engine step two seconds later."""
        self.attachment._look_at = 0.0
        return self.attachment.look()

    def said(self) -> str:
        """What it logged since it was last asked."""
        text = self._log.getvalue()
        self._log.seek(0)
        self._log.truncate()
        return text

    def store(self, count: int, first: int = 0) -> int:
        """Claim, write and publish; how many are there, and right, afterwards."""
        cache = self.attachment.cache
        assert cache is not None
        keys = [key_of(first + number) for number in range(count)]
        handles, _ = cache.claim(keys, PAYLOAD_BYTES)
        handles = handles[handles != 0]
        for key, view in zip(keys, self._views(handles), strict=False):
            view[:] = payload_of(key)
        cache.publish(handles)
        return self.right(count, first)

    def right(self, count: int, first: int = 0) -> int:
        """How many are found; AssertionError for a wrong byte."""
        cache = self.attachment.cache
        assert cache is not None
        keys = [key_of(first + number) for number in range(count)]
        handles, _ = cache.find(keys, pin=True)
        found = [key for key, handle in zip(keys, handles.tolist(), strict=True) if handle]
        handles = handles[handles != 0]
        for key, view in zip(found, self._views(handles), strict=True):
            assert payload_of(key) == view
        cache.unpin(handles)
        return len(found)

    def _views(self, handles: object) -> Iterator[memoryview]:
        cache = self.attachment.cache
        assert cache is not None
        for offset in cache.locate(handles)[0].tolist():  # type: ignore[arg-type]
            view = cache.region.payload(offset, PAYLOAD_BYTES)
            yield view
            view.release()

    def __enter__(self) -> Engine:  # noqa: PYI034 - typing.Self came with Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ValueError):
            self.attachment.close()
        attachment_module.logger.removeHandler(self._handler)


def settings(name: str, *, required: bool) -> Settings:
    return Settings(arena=name, required=required, mode=Mode.READ_WRITE)

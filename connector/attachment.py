"""Is there an arena right now, and are we in it? Attaching, now or later, for the scheduler side.

An engine starts without an arena unless PEGASHM_REQUIRED=1; it is attached when one appears, and again when the
one it had was purged. Asked once a step: a look costs a stat, and happens at most every two seconds. Attaching waits
20 ms for a registry that somebody holds (2 s when the engine starts); leaving is done aside.
"""

import threading
import time
from typing import Final

from vllm.logger import init_logger

from pegashm.cache import Cache
from pegashm.connector.namespace import fresh_namespace
from pegashm.connector.parting import close_aside
from pegashm.connector.settings import Settings
from pegashm.errors import PegaShmError
from pegashm.keys import Namespace
from pegashm.logs import tell
from pegashm.notices import ATTACHED, NOT_ATTACHED, RESERVE_SHORT

__all__ = ["Attachment"]

_LOOK_EVERY_S: Final = 2.0
_WAIT_AT_START_S: Final = 2.0
_WAIT_LATER_S: Final = 0.02
_CLOSE_S: Final = 5.0
# The same words at start and later, so that the same reason is not told twice.
_WITHOUT: Final = "running without PegaShm, attaching when it can"

logger = init_logger(f"vllm.{__name__}")  # under vLLM's own, whose handlers print it


class Attachment:
    """Holds the `Cache` of this engine, or None while there is none. One thread uses it."""

    def __init__(self, settings: Settings, namespace: Namespace, engine_id: str) -> None:
        """Attach if possible. Raises what went wrong when the arena is required."""
        self._settings = settings
        self._namespace = namespace
        self._engine_id = engine_id
        self._told: str | None = None
        self._look_at = 0.0
        self.cache: Cache | None = None
        try:
            self._attach(_WAIT_AT_START_S)
        except Exception as error:
            if settings.required:
                raise
            self._tell(f"{_WITHOUT}: {_said(error)}")

    @property
    def arena_name(self) -> str:
        return self._settings.arena

    @property
    def fingerprint(self) -> bytes:
        """Of the namespace that this engine is in, or will be."""
        return self._namespace.fingerprint

    def look(self) -> bool:
        """Attach or re-attach if it is time; True when the cache is another one than before."""
        now = time.monotonic()
        if now < self._look_at:
            return False
        self._look_at = now + _LOOK_EVERY_S
        if self.cache is not None:
            if self.cache.arena.is_linked():
                return False
            self._tell(f'arena "{self._settings.arena}" was purged: running without it')
            self._leave()
            return True
        try:
            self._attach(_WAIT_LATER_S)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with an arena, the engine goes on
            self._tell(f"{_WITHOUT}: {_said(error)}")
            return False
        return True

    def enter_fresh_namespace(self) -> None:
        """The engine's weights changed: nothing stored so far may be found again by it."""
        self._namespace = fresh_namespace(self._namespace)
        if self.cache is None:
            return
        try:
            self.cache.enter(self._namespace, _WAIT_LATER_S)
        except Exception as error:  # noqa: BLE001 - better no cache than the old weights' blocks
            self._tell(f"leaving the arena, since no fresh namespace could be had: {_said(error)}")
            self._leave()

    def close(self) -> None:
        """Detach, within a bounded time: the end of the process does what is left."""
        if (leaving := self._leave()) is not None:
            leaving.join(_CLOSE_S)

    def _leave(self) -> threading.Thread | None:
        if self.cache is None:
            return None
        leaving, self.cache = self.cache, None
        return close_aside(leaving)

    def _attach(self, wait_s: float) -> None:
        start = time.perf_counter()
        self.cache = Cache.attach(
            self._settings.arena,
            namespace=self._namespace,
            engine_id=self._engine_id.encode(),
            label=self._namespace.label,
            mode=self._settings.mode,
            wait_s=wait_s,
        )
        self._told = None
        self._tell_reserve(self.cache)
        tell(
            ATTACHED,
            'attached to arena "%s" as client %d in %.1f ms',
            self._settings.arena,
            self.cache.slot,
            (time.perf_counter() - start) * 1e3,
            to=logger,
        )

    def _tell_reserve(self, cache: Cache) -> None:
        granted = cache.reserved_bytes if self._namespace.reserved_bytes else 0
        if granted < self._namespace.reserved_bytes:
            tell(
                RESERVE_SHORT,
                'of reserved_bytes=%d this engine has %d: the rest of arena "%s" is reserved by others, '
                "see `pegashm-dump --name %s`",
                self._namespace.reserved_bytes,
                granted,
                cache.name,
                cache.name,
                to=logger,
            )

    def _tell(self, what: str) -> None:
        """One warning for each new reason, not one for each look."""
        if what != self._told:
            tell(NOT_ATTACHED, "%s", what, to=logger)
            self._told = what


def _said(error: Exception) -> str:
    """Our own errors say what to do; of others the kind matters too."""
    return str(error) if isinstance(error, PegaShmError) else repr(error)

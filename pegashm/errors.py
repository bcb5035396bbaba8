"""What can go wrong, as exceptions: one class for each thing a caller would handle differently.

Every message says what happened, what was expected, and what to type. Nothing on a hot path raises:
there a failure is an outcome (see `_native.pyi`) and means a miss.
"""

__all__ = [
    "ArenaBusyError",
    "ArenaMissingError",
    "ArenaNotReadyError",
    "ClientsFullError",
    "ConfigError",
    "FormatError",
    "NamespacesFullError",
    "PegaShmError",
    "ResourceError",
]


class PegaShmError(Exception):
    """Any error of this package."""


class ConfigError(PegaShmError, ValueError):
    """An option, environment variable or file has a value that cannot work."""


class ArenaMissingError(PegaShmError):
    """No shared memory of that name: no supervisor has created it, or it was purged."""


class ArenaNotReadyError(PegaShmError):
    """The shared memory exists, but its creator has not finished (or died before it did)."""


class FormatError(PegaShmError):
    """The shared memory was written by an incompatible build, or it is damaged."""


class ArenaBusyError(PegaShmError):
    """Another living process holds what was asked for (the supervisor's place, a name)."""


class ResourceError(PegaShmError):
    """The machine does not give what was asked: /dev/shm space, locked memory, huge pages."""


class ClientsFullError(PegaShmError):
    """All client slots are held by living processes."""


class NamespacesFullError(PegaShmError):
    """The namespace table is full of namespaces that living clients use."""

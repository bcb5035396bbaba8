"""What does the supervisor tell the transport worker? One frozen object, as JSON on its command line.

Every user of the machine may read a command line: there is nothing secret in it. Checked by its configs again, so
that a worker started by hand is told the same.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from pegashm.config import PeersConfig, SpillConfig
from pegashm.errors import ConfigError
from pegashm.names import check_name

__all__ = ["WorkerOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """`parent_pid`: ends with that process (0: with nobody). `stall_seconds`: when a device counts as hanging.
    `lock_seconds`: how long to wait for a worker that is ending. `log`: format and level, as the supervisor's."""

    name: str
    spill: SpillConfig | None = None
    peers: PeersConfig | None = None
    group: str | None = None
    log: tuple[str, str] | None = None
    parent_pid: int = 0
    stall_seconds: float = 2.0
    lock_seconds: float = 10.0

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.spill is None and self.peers is None:
            raise ConfigError("a transport worker has nothing to do without --spill and --listen")

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> WorkerOptions:
        """ConfigError for anything that is not what `to_json` writes."""
        try:
            fields = json.loads(text)
            spill, peers = fields.pop("spill"), fields.pop("peers")
            if spill is not None:
                spill = SpillConfig(**spill | {"paths": tuple(spill["paths"])})
            if peers is not None:
                lists = {key: tuple(peers[key]) for key in ("members", "rdma_devices")}
                peers = PeersConfig(**peers | lists)
            if fields.get("log") is not None:
                fields["log"] = tuple(fields["log"])
            return cls(spill=spill, peers=peers, **fields)
        except ConfigError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(
                f"the transport worker is started by `pegashm serve` (--spill, --listen), with its options as JSON: {error}"
            ) from error

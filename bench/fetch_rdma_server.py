"""The serving host of `bench.fetch_rdma`: that of `bench.fetch_server` with the verbs fabric over one device.

usage: python -m bench.fetch_rdma_server BYTES FOLDER SEED DEVICE
"""

from __future__ import annotations

import json
import sys

from pegashm.fabric.verbs import VerbsFabric, VerbsOptions

from bench.fetch_server import Server

__all__ = ["main"]


class RdmaServer(Server):
    def __init__(self, size: int, folder: str, seed: int, device: str) -> None:
        super().__init__(size, folder, seed)
        self.fabric.close()
        self.fabric = VerbsFabric(
            self.memory.address, size, options=VerbsOptions(devices=(device,))
        )

    def windows(self) -> bool:
        return self.fabric.windows


def main(size: str, folder: str, seed: str, device: str) -> None:
    server = RdmaServer(int(size), folder, int(seed), device)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        order, *arguments = json.loads(line)
        print(json.dumps(getattr(server, order)(*arguments)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""What does a host look like that is in use? Two supervisors that share blocks as two hosts, engines, an exporter.

All are real processes on this machine's loopback, but the engines (traffic.py), which compute nothing. The first host has
memory and an SSD file, the other memory. Called by the page's tests and by screenshots.py.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.arenas import remove_arena
from tests.ports import free_port, free_ports
from tests.served import PATIENCE_SECONDS, status
from tests.transport.rig import eventually

__all__ = ["GEMMA", "QWEN", "fleet"]

ROOT = Path(__file__).parents[2]
QWEN, GEMMA = "Qwen3-8B bfloat16 tp1", "gemma-3-4b-it bfloat16 tp1"


@contextlib.contextmanager
def fleet(
    name: str, other: str, *, mib: int = 288
) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """The exporter's address, and the engines; all is ended and removed at the end. `mib`: the first host's memory."""
    started: list[subprocess.Popen[bytes]] = []
    with (
        tempfile.TemporaryDirectory(prefix="pegashm-fleet-") as folder,
        contextlib.ExitStack() as down,
    ):
        environment = os.environ | {"RUNTIME_DIRECTORY": folder}
        log = down.enter_context(open(f"{folder}/log", "ab"))

        def start(module: str, *arguments: str) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
            started.append(process)
            return process

        try:
            addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
            common = ["--peers", ",".join(addresses), "--fabric", "tcp", "--segment-size", "2M"]
            spill = ["--spill", f"{folder}/{name}.spill", "--spill-size", f"{2 * mib}M"]
            sizes = {name: ["--size", f"{mib}M", *spill], other: ["--size", f"{2 * mib // 3}M"]}
            for each, listen in zip((name, other), addresses, strict=True):
                start("pegashm", "serve", "--name", each, *sizes[each], *common, "--listen", listen)
            for each in (name, other):
                eventually(lambda each=each: status(each)["state"] == "ready", PATIENCE_SECONDS)
            port = free_port()
            start("pegashm", "exporter", "--name", name, "--listen", f"127.0.0.1:{port}")
            engines = [
                start("tests.page.traffic", each, "--label", label, "--model", model, *more.split())
                for each, label, model, more in (
                    (name, "vllm-0 scheduler", QWEN, "--seed 1"),
                    (name, "vllm-1 scheduler", QWEN, "--seed 2 --shared chat"),
                    (
                        name,
                        "vllm-2 scheduler",
                        GEMMA,
                        f"--seed 3 --block-kib 160 --maximum-mib {mib // 3} --pause 0.5",
                    ),
                    (other, "vllm-3 scheduler", QWEN, "--seed 4 --shared chat"),
                )
            ]
            yield f"http://127.0.0.1:{port}/", engines
            ended = [process.args for process in started if process.poll() not in {None, -9}]
            if ended:
                print("ended too early:", *ended, Path(folder, "log").read_text()[-3000:], sep="\n")
        finally:
            for process in reversed(started):
                process.terminate()
            for process in reversed(started):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(20)
                process.kill()
                process.wait()
            for each in (name, other):
                remove_arena(each)

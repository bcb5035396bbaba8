"""What does the page look like? The pictures of docs/figures, made again: `python -m tests.page.screenshots`.

Two real supervisors on this machine's loopback, each with memory, one with an SSD file as well, that share blocks as two
hosts; processes that use them as engines do (traffic.py), one of which is killed; a real exporter; Chromium. After
MINUTES (10) the pictures are taken: light, dark, and as on a phone. `make screenshots` runs it.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from pegashm.names import SHM_DIRECTORY

from tests.arenas import remove_arena
from tests.page.browser import Browser, opened, why_not
from tests.peers.rig import free_port
from tests.served import status

__all__ = ["scene", "shoot"]

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "docs" / "figures"
QWEN, GEMMA = "Qwen3-8B bfloat16 tp1", "gemma-3-4b-it bfloat16 tp1"


@contextlib.contextmanager
def scene(name: str, other: str) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """The exporter's address, and the engines; all is ended and removed at the end."""
    started: list[subprocess.Popen[bytes]] = []
    with (
        tempfile.TemporaryDirectory(prefix="pegashm-shots-") as folder,
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
            addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
            common = ["--peers", ",".join(addresses), "--fabric", "tcp", "--segment-size", "2M"]
            spill = ["--spill", f"{folder}/{name}.spill", "--spill-size", "512M"]
            sizes = {name: ["--size", "288M", *spill], other: ["--size", "192M"]}
            for each, listen in zip((name, other), addresses, strict=True):
                start("pegashm", "serve", "--name", each, *sizes[each], *common, "--listen", listen)
            for each in (name, other):
                _until(lambda each=each: status(each)["state"] == "ready")
            port = free_port()
            start("pegashm", "exporter", "--name", name, "--listen", f"127.0.0.1:{port}")
            traffic = "tests.page.traffic"
            engines = [
                start(traffic, name, "--label", "vllm-0 scheduler", "--model", QWEN, "--seed", "1"),
                start(
                    traffic,
                    name,
                    "--label",
                    "vllm-1 scheduler",
                    "--model",
                    QWEN,
                    "--seed",
                    "2",
                    "--shared",
                    "chat",
                ),
                start(
                    traffic,
                    name,
                    "--label",
                    "vllm-2 scheduler",
                    "--model",
                    GEMMA,
                    "--seed",
                    "3",
                    "--block-kib",
                    "160",
                    "--maximum-mib",
                    "96",
                    "--pause",
                    "0.5",
                ),
            ]
            start(
                traffic,
                other,
                "--label",
                "vllm-3 scheduler",
                "--model",
                QWEN,
                "--seed",
                "4",
                "--shared",
                "chat",
            )
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


def _until(holds: object, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():  # type: ignore[operator]
        if time.monotonic() > deadline:
            raise TimeoutError("the supervisors did not become ready")
        time.sleep(0.2)


def shoot(browser: Browser, path: Path, *, whole: bool = False) -> None:
    """A picture of what the window shows; `whole`: of all of the page."""
    found = browser.driver.execute_cdp_cmd(
        "Page.captureScreenshot", {"format": "png", "captureBeyondViewport": whole}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(base64.b64decode(found["data"]))
    print(path, f"{path.stat().st_size / 1024:.0f} KiB", flush=True)


def picture(browser: Browser, address: str, folder: Path) -> None:
    """All pictures of the page as it is now."""
    for scheme, suffix in (("light", ""), ("dark", "-dark")):
        browser.prefers(scheme)
        browser.size(1280, 900)
        browser.open(address)
        time.sleep(1.0)  # colours and widths glide
        shoot(browser, folder / f"status-page{suffix}.png")
        height = int(browser.js("document.documentElement.scrollHeight"))
        browser.size(1280, height)
        time.sleep(0.5)
        shoot(browser, folder / f"status-page-whole{suffix}.png")
        browser.size(390, 844, phone=True)
        browser.open(address)
        time.sleep(1.0)
        shoot(browser, folder / f"status-page-phone{suffix}.png")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="of traffic before (10)")
    parser.add_argument("--into", type=Path, default=FIGURES)
    parser.add_argument("--name", default="kv0", help="what the arena is called in the picture")
    options = parser.parse_args()
    reason = why_not()
    if reason:
        sys.exit(reason)
    other = f"{options.name}-neighbour"
    for each in (options.name, other):
        if list(Path(SHM_DIRECTORY).glob(f"pegashm.{each}.*")):
            sys.exit(f'there is an arena "{each}" here: choose another --name')
    with scene(options.name, other) as (address, engines), opened() as browser:
        time.sleep(options.minutes * 60 - 20)
        engines[0].send_signal(signal.SIGKILL)
        time.sleep(20)
        picture(browser, address, options.into)


if __name__ == "__main__":
    main()

"""What does the page look like? The pictures of docs/figures, made again: `python -m tests.page.screenshots`.

A fleet (fleet.py) in use for MINUTES (10), of which one engine is killed near the end; then the pictures are taken in
Chromium: light, dark, and as on a phone. `make screenshots` runs it.
"""

from __future__ import annotations

import argparse
import base64
import signal
import sys
import time
from pathlib import Path

from pegashm.names import SHM_DIRECTORY

from tests.page.browser import Browser, opened, why_not
from tests.page.fleet import fleet

__all__ = ["shoot"]

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "docs" / "figures"
_SETTLE_SECONDS = 1.0  # colours and widths glide


def shoot(browser: Browser, path: Path) -> None:
    """A picture of what the window shows."""
    found = browser.driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(base64.b64decode(found["data"]))
    print(path, f"{path.stat().st_size / 1024:.0f} KiB", flush=True)


def picture(browser: Browser, address: str, folder: Path) -> None:
    """The pictures of the page as it is now: what a window shows, light and dark, all of it, and a phone."""
    for scheme, suffix in (("dark", "-dark"), ("light", "")):
        browser.prefers(scheme)
        browser.size(1280, 900)
        browser.open(address)
        time.sleep(_SETTLE_SECONDS)
        shoot(browser, folder / f"status-page{suffix}.png")
    browser.size(1280, int(browser.js("document.documentElement.scrollHeight")))
    time.sleep(_SETTLE_SECONDS)
    shoot(browser, folder / "status-page-whole.png")
    browser.size(390, 844, phone=True)
    browser.open(address)
    time.sleep(_SETTLE_SECONDS)
    shoot(browser, folder / "status-page-phone.png")


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
    with fleet(options.name, other) as (address, engines), opened() as browser:
        time.sleep(options.minutes * 60 - 20)
        engines[0].send_signal(signal.SIGKILL)
        time.sleep(20)
        picture(browser, address, options.into)


if __name__ == "__main__":
    main()

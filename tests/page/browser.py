"""How does a test look at a page as a person does? Debian's Chromium without a window, driven through WebDriver.

Both ends are on this machine: the resolver knows no other host, so that a page that asks for anything elsewhere fails
and is seen. `why_not` says what is missing. Called by the tests of this folder and by tools/screenshots.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shutil
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

__all__ = ["PATIENCE_SECONDS", "Browser", "opened", "why_not"]

PATIENCE_SECONDS = 60.0  # how long a page may take on a machine that is busy with other things


def why_not() -> str | None:
    """What keeps this machine from showing a page; None: nothing."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        return "no Chromium: apt-get install chromium chromium-driver"
    if importlib.util.find_spec("selenium") is None:
        return "no selenium: it is in the extra `test`"
    return None


class Browser:
    """One Chromium; its pages are opened one after the other."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def open(self, address: str) -> None:
        """Load a page and wait until it has shown one reading."""
        self.forget()
        self.driver.get(address)
        self.until(lambda: self.text("freshness").startswith("updated"))

    def size(self, width: int, height: int, *, phone: bool = False) -> None:
        """The inside of the window, in CSS pixels."""
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {
                "width": width,
                "height": height,
                "deviceScaleFactor": 2 if phone else 1,
                "mobile": phone,
            },
        )

    def prefers(self, scheme: str) -> None:
        """What the system says: "light" or "dark"."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

    def js(self, expression: str, *arguments: Any) -> Any:
        return self.driver.execute_script(f"return {expression}", *arguments)

    def text(self, identifier: str) -> str:
        """The text of an element as a person sees it, "" when it is hidden."""
        shown: str = self.js(
            "((node) => node?.checkVisibility() ? node.innerText.trim() : '')(document.getElementById(arguments[0]))",
            identifier,
        )
        return shown

    def rows(self, identifier: str) -> list[dict[str, str]]:
        """A table's rows by its column names."""
        script = """(() => {
            const table = document.getElementById(arguments[0]);
            const names = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
            return [...table.tBodies[0].rows].map((row) =>
                Object.fromEntries([...row.cells].map((cell, at) => [names[at], cell.textContent])));
        })()"""
        return list(self.driver.execute_script(f"return {script}", identifier))

    def until(self, holds: Callable[[], Any], seconds: float = PATIENCE_SECONDS) -> Any:
        """What `holds` returns once that is true."""
        deadline = time.monotonic() + seconds
        while not (value := holds()):
            assert time.monotonic() < deadline, f"never came true: {holds}; {self.complaints()}"
            time.sleep(0.05)
        return value

    def forget(self) -> None:
        """Begin the logs anew."""
        self.driver.get_log("browser")
        self.driver.get_log("performance")

    def complaints(self) -> list[str]:
        """What the console said since, warnings and errors."""
        return [
            entry["message"]
            for entry in self.driver.get_log("browser")
            if entry["level"] in {"WARNING", "SEVERE"}
        ]

    def requested(self) -> list[str]:
        """The addresses of all that was asked for since."""
        messages = (
            json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")
        )
        return [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]


@contextlib.contextmanager
def opened() -> Iterator[Browser]:
    """A browser of its own, closed at the end."""
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in (
        "--headless=new",
        "--no-sandbox",  # it runs as root in CI
        "--disable-gpu",
        "--disable-dev-shm-usage",  # that memory is for arenas
        "--disable-background-networking",
        "--disable-component-update",
        "--no-first-run",
        "--hide-scrollbars",
        "--force-color-profile=srgb",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        "--window-size=1280,900",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        driver.set_page_load_timeout(PATIENCE_SECONDS)
        yield Browser(driver)
    finally:
        driver.quit()

"""A headless Chromium, driven through chromedriver's own HTTP routes (W3C WebDriver)."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
MISSING = "" if CHROMIUM and DRIVER else "there is no chromium with a chromedriver here"
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         "--hide-scrollbars", "--force-device-scale-factor=1", "--no-proxy-server")  # fmt: skip
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Browser:
    """One window of it."""

    def __init__(self, driver: str) -> None:
        self._driver = driver
        options = {"binary": CHROMIUM, "args": list(FLAGS)}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        made = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"/session/{made['sessionId']}"

    def _ask(self, verb: str, path: str, body: Any = None) -> Any:
        data = None if verb in ("GET", "DELETE") else json.dumps(body or {}).encode()
        request = urllib.request.Request(self._driver + path, data, method=verb)
        with _direct.open(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def ask(self, verb: str, path: str, body: Any = None) -> Any:
        """A route of the session."""
        return self._ask(verb, self._session + path, body)

    def open(self, url: str) -> None:
        self.ask("POST", "/url", {"url": url})

    def size(self, width: int, height: int, dark: bool = False) -> None:
        """The size of the page, whatever a window may be, and its colours."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.tool("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.tool("Emulation.setEmulatedMedia", {"features": [scheme]})

    def tool(self, command: str, params: Any) -> Any:
        """A command of the DevTools protocol."""
        return self.ask("POST", "/goog/cdp/execute", {"cmd": command, "params": params})

    def run(self, script: str, *args: Any) -> Any:
        """What a function body of JavaScript returns."""
        return self.ask("POST", "/execute/sync", {"script": script, "args": list(args)})

    def until(self, script: str, seconds: float = 20.0) -> Any:
        """What a function body returns once that is true."""
        return waited(lambda: self.run(script), script, seconds)

    def picture(self, whole: bool = False) -> bytes:
        """A PNG of what is seen, or of the whole page."""
        options = {"format": "png", "captureBeyondViewport": whole}
        if whole:
            size = self.tool("Page.getLayoutMetrics", {})["cssContentSize"]
            options["clip"] = {**size, "x": 0, "y": 0, "scale": 1}
        return base64.b64decode(self.tool("Page.captureScreenshot", options)["data"])

    def log(self) -> list[str]:
        """What the console said since the last call."""
        return [one["message"] for one in self.ask("POST", "/se/log", {"type": "browser"})]


def waited(ask: Callable[[], Any], what: str, seconds: float) -> Any:
    end = time.monotonic() + seconds
    while not (found := ask()):
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds:g} s: {what}")
        time.sleep(0.05)
    return found


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser until the context ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    quiet = subprocess.DEVNULL
    driver = subprocess.Popen([str(DRIVER), f"--port={port}"], stdout=quiet, stderr=quiet)
    try:

        def up() -> bool:
            try:
                with _direct.open(f"http://127.0.0.1:{port}/status", timeout=5):
                    return True
            except OSError:
                return False

        waited(up, "chromedriver", 20)
        made = Browser(f"http://127.0.0.1:{port}")
        try:
            yield made
        finally:
            made.ask("DELETE", "")
    finally:
        driver.terminate()
        driver.wait(10)

"""A headless Chromium, driven over its DevTools pipe: no port, no driver, no library.

Messages are JSON ended by a zero byte, in on the browser's descriptor 3 and out on its 4.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
SECONDS = 60.0
KEYS = {"Tab": 9, "Enter": 13, " ": 32, "ArrowRight": 39}
CHARACTERS = {"Enter": "\r", " ": " "}


def installed() -> str | None:
    """The path of a browser, if there is one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page. said: what its console, its errors and its log said; asked: addresses it loaded."""

    def __init__(self, to: int, out: int) -> None:
        self.said: list[str] = []
        self.asked: list[str] = []
        self._to, self._out = to, out
        self._bytes = b""
        self._number = 0
        self._loaded = False
        self._session = ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for part in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{part}.enable")

    def call(self, method: str, **given: Any) -> Any:
        """The result of a DevTools method. Raises RuntimeError with what the browser said."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": given}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            found = self._next()
            if found.get("id") == self._number:
                if "error" in found:
                    raise RuntimeError(f"{method}: {found['error']['message']}")
                return found["result"]

    def look(self, width: int, height: int, *, dark: bool = False, phone: bool = False) -> None:
        """The size of the window in its pixels, and what its owner prefers."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=phone,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, page: Path) -> None:
        """Until it is loaded."""
        self._loaded = False
        self.call("Page.navigate", url=page.as_uri())
        while not self._loaded:
            self._next()

    def run(self, script: str) -> Any:
        """The value of an expression, or what it promises. Raises RuntimeError where it throws."""
        found = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in found:
            raise RuntimeError(f"{script}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def press(self, key: str) -> None:
        """One of KEYS, down and up."""
        about = {"key": key, "code": "Space" if key == " " else key}
        about |= {"windowsVirtualKeyCode": KEYS[key]}
        text = {"text": CHARACTERS[key]} if key in CHARACTERS else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **about, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def shot(self, path: Path) -> bytes:
        """The whole page as PNG, written there too."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        png = base64.b64decode(found["data"])
        path.write_bytes(png)
        return png

    def _next(self) -> Any:
        """The next message; what it tells of the page is kept. Raises TimeoutError."""
        end = time.monotonic() + SECONDS
        while b"\0" not in self._bytes:
            if not select.select([self._out], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError(f"the browser said nothing for {SECONDS:g} s")
            read = os.read(self._out, 1 << 20)
            if not read:
                raise RuntimeError("the browser has gone")
            self._bytes += read
        text, self._bytes = self._bytes.split(b"\0", 1)
        message = json.loads(text)
        about = message.get("params", {})
        match message.get("method"):
            case "Page.loadEventFired":
                self._loaded = True
            case "Network.requestWillBeSent":
                self.asked.append(about["request"]["url"])
            case "Runtime.consoleAPICalled" | "Runtime.exceptionThrown" | "Log.entryAdded":
                self.said.append(json.dumps(about))
        return message


@contextmanager
def browser(program: str, folder: Path) -> Iterator[Browser]:
    """folder: what it keeps, which must be empty."""
    (inner_in, to), (out, inner_out) = os.pipe(), os.pipe()
    # Above 9, so that they can be moved to 3 and 4 in either order.
    given = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (inner_in, inner_out)]
    moved = f'exec "$@" 3<&{given[0]} 4>&{given[1]}'
    command = ["bash", "-c", moved, "bash", program, *QUIET, f"--user-data-dir={folder}"]
    process = subprocess.Popen(command, pass_fds=given, stderr=subprocess.DEVNULL)
    for fd in (inner_in, inner_out, *given):
        os.close(fd)
    try:
        made = Browser(to, out)
        yield made
        made._session = ""
        with suppress(RuntimeError):
            made.call("Browser.close")
    finally:
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for fd in (to, out):
            os.close(fd)

"""A page as Chromium shows it, over the DevTools protocol: what it logs, what it asks the network for, how it looks."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find_chromium() -> str | None:
    """The browser's program, None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@dataclass
class Look:
    """errors: of the console, scripts and loading. requests: addresses beside the page's own. overflow: how many pixels
    the page is wider than its window.
    """

    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    overflow: int = 0


class Browser:
    """A headless Chromium, spoken to over two pipes; a context manager."""

    def __init__(self, program: str):
        self._program = program
        self._number, self._session = 0, None
        self._rest = b""
        self._events: list[dict[str, Any]] = []

    def __enter__(self) -> Browser:
        near_read, self._write = os.pipe()
        self._read, near_write = os.pipe()
        to_read, to_write = (fcntl.fcntl(near, fcntl.F_DUPFD_CLOEXEC, 20) for near in (near_read, near_write))
        os.close(near_read)
        os.close(near_write)
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        command = [
            self._program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--no-first-run", "--hide-scrollbars", "--disable-background-networking", "--disable-component-update",
            "--disable-sync", f"--user-data-dir={self._folder.name}", "--remote-debugging-pipe", "about:blank",
        ]  # fmt: skip
        # Chromium reads from file descriptor 3 and writes to 4; the shell puts the pipes there
        shell = f'exec "$@" 3<&{to_read} 4>&{to_write} {to_read}<&- {to_write}>&-'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, "bash", *command], pass_fds=(to_read, to_write), stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_read)
        os.close(to_write)
        os.set_blocking(self._read, False)
        pages = self.call("Target.getTargets")["targetInfos"]
        page = next(info["targetId"] for info in pages if info["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._write)
        os.close(self._read)
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()

    def look(self, page: Path, width: int = 1280, height: int = 900, dark: bool = False, wait: float = 0.3) -> Look:
        """Open a page in a window of that size and wait until it and what it asks for are there."""
        self._events.clear()
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        address = page.absolute().as_uri()
        self.call("Page.navigate", url=address)
        self._until(lambda: any(event["method"] == "Page.loadEventFired" for event in self._events))
        self._until(lambda: False, wait)
        found = Look(overflow=self.ask("document.documentElement.scrollWidth - window.innerWidth"))
        for event in self._events:
            about = event.get("params", {})
            if event["method"] == "Network.requestWillBeSent" and about["request"]["url"] != address:
                found.requests.append(about["request"]["url"])
            elif event["method"] == "Runtime.exceptionThrown":
                found.errors.append(about["exceptionDetails"]["text"])
            elif event["method"] == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning", "assert"):
                found.errors.append(str(about["args"]))
            elif event["method"] == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
                found.errors.append(about["entry"]["text"])
        return found

    def ask(self, expression: str) -> Any:
        """The value of an expression on the page."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def picture(self, path: Path, whole: bool = True) -> None:
        """The page as it looks now (PNG)."""
        made = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole, **self._clip(whole))
        path.write_bytes(base64.b64decode(made["data"]))

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Ask for something and wait for the answer."""
        self._number += 1
        number = self._number
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        answer: list[dict[str, Any]] = []

        def answered() -> bool:
            for event in list(self._events):
                if event.get("id") == number:
                    self._events.remove(event)
                    answer.append(event)
            return bool(answer)

        assert self._until(answered, 60), f"Chromium does not answer {method}"
        assert "result" in answer[0], answer[0]
        return answer[0]["result"]

    def _clip(self, whole: bool) -> dict[str, Any]:
        if not whole:
            return {}
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        return {"clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}}

    def _until(self, condition: Any, seconds: float = 60) -> bool:
        end = time.monotonic() + seconds
        while True:
            with contextlib.suppress(BlockingIOError):
                self._rest += os.read(self._read, 1 << 20)
            *whole, self._rest = self._rest.split(b"\0")
            self._events += map(_event, whole)
            if condition():
                return True
            if time.monotonic() > end:
                return False
            time.sleep(0.01)


def _event(message: bytes) -> dict[str, Any]:
    return {"method": "", **json.loads(message)}

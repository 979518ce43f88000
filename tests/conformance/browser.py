"""Headless Chromium, driven over the W3C WebDriver protocol by chromedriver; both live in a namespace of a lab's node."""

from __future__ import annotations

import base64
import http.client
import json
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from shim.lab import netns
from shim.lab.node import LabNode

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars",
)  # fmt: skip
_PORT = 9515
_START_S = 60.0


class Browser:
    """One browser with a profile of its own, as a context manager; it reaches what its node reaches, and no more."""

    def __init__(self, node: LabNode, folder: Path, size: tuple[int, int] = (1280, 900)) -> None:
        self._node = node
        self._folder = folder
        self._size = size
        self._session = ""

    def __enter__(self) -> Self:
        driver = shutil.which("chromedriver")
        assert driver is not None, "there is no chromedriver: scripts/conformance-setup.sh installs it"
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "driver.log").open("w") as log:
            self._driver = self._node.popen([driver, f"--port={_PORT}"], stdout=log, stderr=log)
        try:
            self._until(lambda: self._ask("GET", "/status")["ready"], "chromedriver")
            width, height = self._size
            flags = [*FLAGS, f"--window-size={width},{height}", f"--user-data-dir={self._folder / 'profile'}"]
            wanted = {
                "browserName": "chrome",
                "goog:chromeOptions": {"binary": shutil.which("chromium"), "args": flags},
                "goog:loggingPrefs": {"browser": "ALL"},
            }
            made = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
            self._session = f"/session/{made['sessionId']}"
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._session:
                self._ask("DELETE", self._session)  # the browser ends with its session
        finally:
            self._end()

    def _end(self) -> None:
        self._driver.terminate()
        self._driver.wait(timeout=20)

    def open(self, url: str) -> None:
        """Go to a page."""
        self._do("POST", "/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """Run the body of a function in the page, and return what it returns."""
        return self._do("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def until(self, script: str, what: str, *arguments: Any, timeout_s: float = 30.0) -> Any:
        """Wait until a script returns something true, and return that."""
        return self._until(lambda: self.run(script, *arguments), what, timeout_s)

    def text(self) -> str:
        """Return what the page shows."""
        return str(self.run("return document.body.innerText"))

    def dark(self, on: bool) -> None:
        """Say that the person prefers dark pages."""
        features = [{"name": "prefers-color-scheme", "value": "dark" if on else "light"}]
        self._do("POST", "/goog/cdp/execute", {"cmd": "Emulation.setEmulatedMedia", "params": {"features": features}})

    def resize(self, width: int, height: int) -> None:
        """Give the page another size."""
        sizes = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._do("POST", "/goog/cdp/execute", {"cmd": "Emulation.setDeviceMetricsOverride", "params": sizes})

    def screenshot(self, path: Path) -> None:
        """Write what is seen as PNG."""
        path.write_bytes(base64.b64decode(self._do("GET", "/screenshot")))

    def complaints(self) -> list[str]:
        """Return what stands in the console since the last call: errors of scripts, blocked loads."""
        return [entry["message"] for entry in self._do("POST", "/se/log", {"type": "browser"})]

    def _do(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        return self._ask(method, self._session + path, body)

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", _PORT, timeout=60)
        connection.sock = netns.open_socket(self._node.netns_path, socket.AF_INET, socket.SOCK_STREAM)
        try:
            connection.sock.settimeout(60)
            connection.sock.connect(("127.0.0.1", _PORT))
            connection.request(method, path, json.dumps(body) if body is not None else None)
            answer = connection.getresponse()
            found = json.loads(answer.read())["value"]
        finally:
            connection.close()
        assert answer.status == 200, f"{path}: {found}"
        return found

    def _until(self, condition: Callable[[], Any], what: str, timeout_s: float = _START_S) -> Any:
        deadline_s = time.monotonic() + timeout_s
        while True:
            try:
                found = condition()
            except OSError:
                found = None
            if found:
                return found
            assert time.monotonic() < deadline_s, f"{what} did not come true within {timeout_s} s"
            time.sleep(0.05)

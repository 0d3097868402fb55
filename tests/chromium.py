"""A page in headless Chromium, driven by the DevTools protocol over a pipe."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip


class Page:
    """One page.

    Attributes
    ----------
    errors
        What it reported as errors: exceptions, refused by its policy, failed loads.
    asked
        Addresses it asked for, but for ``data:``.
    """

    def __init__(self, send: Callable[[bytes], object], receive: Callable[[], Iterator[dict[str, Any]]]) -> None:
        self._send, self._messages = send, receive()
        self._number, self._session = 0, None
        self.errors: list[str] = []
        self.asked: list[str] = []
        target = self.do("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.do("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.do(f"{domain}.enable")

    def do(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self._number += 1
        session = {"sessionId": self._session} if self._session else {}
        self._send(json.dumps({"id": self._number, "method": method, "params": params, **session}).encode() + b"\0")
        for message in self._messages:
            self._note(message)
            if message.get("id") == self._number:
                assert "error" not in message, message["error"]
                return message["result"]
        raise EOFError("Chromium has ended")

    def run(self, script: str) -> Any:
        """Return the value of a script, awaited."""
        done = self.do("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def wait(self, condition: str) -> None:
        """Wait until a condition holds, asked once a frame."""
        self.run(f"new Promise(done => (function ask() {{ {condition} ? done() : requestAnimationFrame(ask) }})())")

    def open(self, address: str, width: int = 1200, height: int = 900) -> None:
        """Open a page at a size and wait for its viewer."""
        self.do("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.do("Page.navigate", url=address)
        self.wait("document.readyState === 'complete' && document.querySelector('#viewer')?.dataset.view")

    def press(self, key: str, *, shift: bool = False) -> None:
        """Press a key, and wait until the page has drawn what came of it."""
        text = {"text": key} if len(key) == 1 else {}
        for kind in ("keyDown", "keyUp"):
            self.do("Input.dispatchKeyEvent", type=kind, key=key, modifiers=8 * shift, **text)
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def download(self, key: str, folder: Path) -> Path:
        """Return the file that the page writes to an empty folder when a key is pressed."""
        self.do("Page.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
        self.press(key)
        while not (found := [path for path in folder.iterdir() if path.suffix == ".geojson"]):
            self.wait("true")
        return found[0]

    def screenshot(self, path: Path) -> None:
        """Write what is seen as PNG."""
        path.write_bytes(base64.b64decode(self.do("Page.captureScreenshot")["data"]))

    def _note(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(params["exceptionDetails"]))
        elif message.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"])
        elif message.get("method") == "Network.requestWillBeSent":
            self.asked += [url for url in [params["request"]["url"]] if not url.startswith("data:")]


@contextmanager
def chromium() -> Iterator[Page]:
    """Start Chromium and give a page of it; it ends with the block."""
    assert CHROMIUM
    (their_in, our_out), (our_in, their_out) = os.pipe(), os.pipe()

    def pipes() -> None:  # Chromium reads from 3 and writes to 4
        spare_in, spare_out = os.dup(their_in), os.dup(their_out)
        os.dup2(spare_in, 3)
        os.dup2(spare_out, 4)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [CHROMIUM, *FLAGS, "--remote-debugging-pipe", f"--user-data-dir={profile}"]
        process = subprocess.Popen(
            command, preexec_fn=pipes, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(their_in)
        os.close(their_out)

        def receive() -> Iterator[dict[str, Any]]:
            with open(our_in, "rb") as file:  # noqa: PTH123
                rest = b""
                while data := file.raw.read(1 << 16):
                    *whole, rest = (rest + data).split(b"\0")
                    yield from map(json.loads, whole)

        try:
            yield Page(lambda data: os.write(our_out, data), receive)
        finally:
            process.terminate()
            process.wait(20)
            os.close(our_out)

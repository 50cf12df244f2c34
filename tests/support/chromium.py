"""A headless Chromium that is told what to do over a pipe (Chrome DevTools Protocol), and a host of files that can be taken away."""

import base64
import fcntl
import functools
import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]  # one that shows a moving picture, and is allowed
# A name is never looked up: whatever would be asked of another host fails, and is seen in `Chromium.requests`.
ALONE = [
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
    "--proxy-server=direct://",
    "--disable-sync",
    "--disable-default-apps",
]


class Chromium:
    """One tab. ``requests``: addresses that were asked for; ``complaints``: what the console and refused policies said."""

    def __init__(self, profile: Path, width: int = 1280, height: int = 900) -> None:
        assert PROGRAM is not None
        (there, self._to), (self._from, back) = os.pipe(), os.pipe()
        ends = [fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, 50) for one in (there, back)]
        os.close(there)
        os.close(back)
        actions: list[Any] = [(os.POSIX_SPAWN_DUP2, ends[0], 3), (os.POSIX_SPAWN_DUP2, ends[1], 4)]
        actions += [(os.POSIX_SPAWN_OPEN, one, os.devnull, os.O_RDWR, 0) for one in (0, 1, 2)]
        options = [
            *QUIET,
            *ALONE,
            *CAMERA,
            f"--user-data-dir={profile}",
            f"--window-size={width},{height}",
            "--remote-debugging-pipe",
            "about:blank",
        ]
        self._process = os.posix_spawn(PROGRAM, [PROGRAM, *options], os.environ, file_actions=actions)
        for one in ends:
            os.close(one)
        self._rest, self._count, self._session = b"", 0, ""
        self.requests: list[str] = []
        self.complaints: list[str] = []
        [tab] = [one for one in self.do("Target.getTargets")["targetInfos"] if one["type"] == "page"]
        self._session = self.do("Target.attachToTarget", targetId=tab["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.do(f"{domain}.enable")

    def do(self, method: str, **arguments: Any) -> Any:
        """What the browser answers; what it tells meanwhile is noted."""
        self._count += 1
        said = {"id": self._count, "method": method, "params": arguments} | ({"sessionId": self._session} if self._session else {})
        self._write(json.dumps(said).encode() + b"\0")
        while (told := self._next()).get("id") != self._count:
            self._note(told)
        assert "error" not in told, told
        return told["result"]

    def _write(self, content: bytes) -> None:
        while content:
            content = content[os.write(self._to, content) :]

    def _next(self) -> Any:
        while b"\0" not in self._rest:
            piece = os.read(self._from, 1 << 20)
            assert piece, "the browser ended"
            self._rest += piece
        first, _, self._rest = self._rest.partition(b"\0")
        return json.loads(first)

    def _note(self, told: Any) -> None:
        about = told.get("params", {})
        if told.get("method") == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"])
        elif told.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(
                str(about["exceptionDetails"].get("exception", {}).get("description") or about["exceptionDetails"]["text"])
            )
        elif told.get("method") == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            self.complaints.append(about["entry"]["text"])

    def open(self, address: str) -> None:
        self.do("Page.navigate", url=address)
        while (told := self._next()).get("method") != "Page.loadEventFired":
            self._note(told)

    def ask(self, expression: str) -> Any:
        """The value of an expression of the page, which may be a promise."""
        told = self.do("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def press(self, *keys: str) -> None:
        """Keys by their names, one after the other; "Shift+ArrowUp" with the shift key held."""
        for key in keys:
            name = key.removeprefix("Shift+")
            for kind in ("keyDown", "keyUp"):
                self.do("Input.dispatchKeyEvent", type=kind, key=name, modifiers=8 if name != key else 0)

    def choose(self, expression: str, path: Path) -> None:
        """Choose a file in the input that the expression gives."""
        found = self.do("Runtime.evaluate", expression=expression)["result"]["objectId"]
        self.do("DOM.setFileInputFiles", files=[str(path)], objectId=found)

    def resize(self, width: int, height: int) -> None:
        self.do("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def picture(self, path: Path) -> None:
        found = self.do("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))

    def close(self) -> None:
        os.write(self._to, json.dumps({"id": 0, "method": "Browser.close"}).encode() + b"\0")
        os.waitpid(self._process, 0)
        for one in (self._to, self._from):
            os.close(one)


@contextmanager
def chromium(profile: Path, **how: int) -> Iterator[Chromium]:
    browser = Chromium(profile, **how)
    try:
        yield browser
    finally:
        browser.close()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def host_of_files(folder: Path) -> Iterator[tuple[str, ThreadingHTTPServer]]:
    """Its address, and the server, which can be shut down before the end."""
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/", server
        finally:
            server.shutdown()
            thread.join()

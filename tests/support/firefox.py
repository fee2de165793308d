"""A headless Firefox, driven by WebDriver BiDi (https://w3c.github.io/webdriver-bidi/) without geckodriver."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

PROGRAM = shutil.which("firefox-esr") or shutil.which("firefox")
PATIENCE = 30.0  # seconds: only so that a hang fails
SIZE = {"width": 1280, "height": 800}

# Nothing but the site is contacted, and a new profile shows no pages of its own.
PREFERENCES: dict[str, bool | int | str] = {
    "app.normandy.enabled": False,
    "app.update.disabledForTesting": True,
    "browser.safebrowsing.update.enabled": False,
    "browser.shell.checkDefaultBrowser": False,
    "browser.startup.page": 0,
    "datareporting.policy.dataSubmissionEnabled": False,
    "extensions.update.enabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "network.dns.disablePrefetch": True,
    "services.settings.server": "data:,",
    "toolkit.telemetry.server": "data:,",
}

# The keys of WebDriver.
ENTER, SHIFT, CONTROL, TAB = "\ue007", "\ue008", "\ue009", "\ue004"


class BiDiError(Exception):
    """Firefox refused a command."""


class Firefox:
    """A Firefox with a profile of its own in `folder`, and one tab. It ends with the `with`."""

    def __init__(self, folder: Path) -> None:
        assert PROGRAM is not None
        self._ids = itertools.count(1)
        self._stack = ExitStack()
        self.errors: list[str] = []  # of the console
        profile = folder / "firefox"
        profile.mkdir()
        lines = [
            f"user_pref({json.dumps(name)}, {json.dumps(value)});"
            for name, value in PREFERENCES.items()
        ]
        (profile / "user.js").write_text("\n".join(lines))
        self._address = profile / "WebDriverBiDiServer.json"
        with (folder / "firefox.log").open("wb") as log:
            self._process = subprocess.Popen(
                [PROGRAM, "--headless", "--no-remote", "--profile", str(profile),
                 "--remote-debugging-port", "0", "about:blank"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )  # fmt: skip

    def __enter__(self) -> Self:
        try:
            self._socket = self._connect()
            self.command("session.new", capabilities={})
            self.command("session.subscribe", events=["log.entryAdded"])
            [first, *_] = self.command("browsingContext.getTree")["contexts"]
            self._context = first["context"]
            self.command("browsingContext.setViewport", context=self._context, viewport=SIZE)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._process.terminate()
        try:
            self._process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _connect(self) -> ClientConnection:
        def address() -> Any:
            try:
                return json.loads(self._address.read_text())
            except (FileNotFoundError, json.JSONDecodeError):
                assert self._process.poll() is None, "Firefox has ended"
                return None

        found = wait_until(address, "Firefox listens")
        url = f"ws://{found['ws_host']}:{found['ws_port']}/session"
        # Firefox refuses connections with an Origin, and the library sends none.
        return self._stack.enter_context(connect(url, proxy=None, max_size=None, close_timeout=1))

    def command(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result. Raises BiDiError."""
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            try:
                answer = json.loads(self._socket.recv(timeout=PATIENCE))
            except ConnectionClosed as error:
                raise BiDiError(f"{method}: Firefox has closed the connection") from error
            if answer.get("method") == "log.entryAdded":
                entry = answer["params"]
                if entry["level"] == "error":
                    self.errors.append(f"{entry['text']} {entry.get('stackTrace')}")
            elif answer.get("id") == number:
                if answer["type"] == "error":
                    raise BiDiError(f"{method}: {answer['error']}: {answer['message']}")
                result: dict[str, Any] = answer["result"]
                return result

    # --- The page

    def open(self, url: str) -> None:
        self.command("browsingContext.navigate", context=self._context, url=url, wait="complete")

    def run(self, expression: str) -> Any:
        """Return the value of an expression, as JSON; a promise is awaited."""
        result = self.command(
            "script.evaluate",
            expression=f"Promise.resolve({expression}).then((value) => JSON.stringify(value ?? null))",
            target={"context": self._context},
            awaitPromise=True,
        )
        if result["type"] == "exception":
            raise BiDiError(result["exceptionDetails"]["text"])
        return json.loads(result["result"]["value"])

    def wait_for(self, expression: str, what: str) -> Any:
        """Return the first true value of an expression; a page that is being left has none."""

        def value() -> Any:
            try:
                return self.run(expression)
            except BiDiError as error:
                if "no such frame" in str(error) or "discarded" in str(error):
                    return None
                raise

        return wait_until(value, what)

    # --- Hands

    def click(self, selector: str) -> None:
        """Press the middle of the first visible element."""
        box = self.wait_for(
            f"[...document.querySelectorAll({json.dumps(selector)})]"
            ".filter((element) => element.checkVisibility())"
            ".map((element) => { element.scrollIntoView({block: 'nearest', behavior: 'instant'});"
            " const {x, y, width, height} = element.getBoundingClientRect();"
            " return [x + width / 2, y + height / 2]; })[0]",
            f"{selector} is there to click",
        )
        x, y = (round(place) for place in box)
        self._perform(
            "pointer",
            {"type": "pointerMove", "x": x, "y": y},
            {"type": "pointerDown", "button": 0},
            {"type": "pointerUp", "button": 0},
        )

    def press(self, keys: str, *held: str) -> None:
        """Type keys one after the other, while others are held."""
        strokes = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        down = [{"type": "keyDown", "value": key} for key in held]
        up = [{"type": "keyUp", "value": key} for key in reversed(held)]
        self._perform("key", *down, *strokes, *up)

    def scroll(self, pixels: int) -> None:
        """Turn the wheel over the middle of the page; negative pixels are upward."""
        self._perform(
            "wheel",
            {
                "type": "scroll",
                "x": SIZE["width"] // 2,
                "y": 300,
                "deltaX": 0,
                "deltaY": pixels,
            },
        )

    def _perform(self, kind: str, *actions: dict[str, Any]) -> None:
        source = {"type": kind, "id": kind, "actions": actions}
        self.command("input.performActions", context=self._context, actions=[source])


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    """Return the condition's first true result."""
    give_up_at = time.monotonic() + PATIENCE
    while True:
        if answer := condition():
            return answer
        assert time.monotonic() < give_up_at, f"not in {PATIENCE} s: {what}"
        time.sleep(0.05)

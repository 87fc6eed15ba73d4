"""A headless Chromium, told what to do over its DevTools protocol. Needs nothing but the program and aiohttp."""

import asyncio
import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WAIT = 30.0


class Page:
    """One tab. ``complaints``: what its console says and what it throws; ``requests``: every URL that it asked for."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._number = socket, 0
        self.complaints: list[str] = []
        self.requests: list[str] = []

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol, and its result."""
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": params})
        while True:
            message = await self._socket.receive_json(timeout=WAIT)
            if message.get("id") == self._number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                result: dict[str, Any] = message["result"]
                return result
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        if message.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(params["exceptionDetails"])[:500])
        if message.get("method") == "Log.entryAdded" and params["entry"]["level"] in ("warning", "error"):
            self.complaints.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")

    async def open(self, url: str) -> None:
        """Go to a URL."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.call(f"{domain}.enable")
        await self.call("Page.navigate", url=url)

    async def value(self, script: str) -> Any:
        """The value of an expression in the page; promises are awaited."""
        result = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{script}: {result['exceptionDetails']}")
        return result["result"].get("value")

    async def until(self, script: str, wait: float = WAIT) -> None:
        """Wait until an expression is true. Between two pages it may fail for want of either."""
        deadline = time.monotonic() + wait
        while not await self._true(script):
            if time.monotonic() > deadline:
                text = await self.value("document.body.innerText")
                raise TimeoutError(f"not within {wait} s: {script}; {self.complaints}; the page:\n{text}")
            await asyncio.sleep(0.05)

    async def _true(self, script: str) -> bool:
        try:
            return bool(await self.value(script))
        except RuntimeError:
            return False

    async def text(self, selector: str) -> str:
        """What an element says."""
        return str(await self.value(f"document.querySelector({json.dumps(selector)}).innerText"))

    async def middle(self, selector: str, share: float = 0.5) -> tuple[float, float]:
        """A point in an element, so far from its left edge, scrolled into view."""
        script = (
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center'});"
            f"const r = e.getBoundingClientRect(); return [r.left + r.width * {share}, r.top + r.height / 2]; }})()"
        )
        x, y = await self.value(script)
        return float(x), float(y)

    async def mouse(self, kind: str, place: tuple[float, float], buttons: int = 1) -> None:
        """One event of the mouse."""
        x, y = place
        await self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=buttons, clickCount=1)

    async def click(self, selector: str) -> None:
        """Press and let go."""
        place = await self.middle(selector)
        await self.mouse("mousePressed", place)
        await self.mouse("mouseReleased", place, 0)

    async def drag(self, selector: str, start: float, stop: float) -> None:
        """Drag from one share of an element's width to another."""
        first, last = await self.middle(selector, start), await self.middle(selector, stop)
        await self.mouse("mousePressed", first)
        for step in range(1, 11):
            await self.mouse("mouseMoved", (first[0] + (last[0] - first[0]) * step / 10, last[1]))
        await self.mouse("mouseReleased", last, 0)

    async def key(self, name: str) -> None:
        """One key, pressed and let go."""
        code = {"Tab": 9, "Enter": 13, "ArrowLeft": 37, "ArrowRight": 39, "Home": 36, "End": 35}[name]
        text = {"text": "\r"} if name == "Enter" else {}
        await self.call(
            "Input.dispatchKeyEvent", type="keyDown", key=name, code=name, windowsVirtualKeyCode=code, **text
        )
        await self.call("Input.dispatchKeyEvent", type="keyUp", key=name, code=name, windowsVirtualKeyCode=code)

    async def type(self, text: str) -> None:
        """Text into what has the focus."""
        await self.call("Input.insertText", text=text)

    async def screenshot(self, path: Path) -> None:
        """The whole page as a PNG."""
        result = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(result["data"]))


@asynccontextmanager
async def chromium(folder: Path, *, width: int = 1000, height: int = 900) -> AsyncIterator[Page]:
    """A browser with one empty tab, ended afterwards; its profile lies in ``folder``."""
    arguments = ["--headless=new", "--remote-debugging-port=0", f"--user-data-dir={folder}", "--no-first-run"]
    arguments += [f"--window-size={width},{height}", "--disable-gpu", "--disable-dev-shm-usage", "--disable-extensions"]
    arguments += ["--disable-background-networking", "--disable-component-update"]
    if os.getuid() == 0:
        arguments.append("--no-sandbox")
    process = subprocess.Popen(
        [CHROMIUM or "", *arguments, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        port = await _port(folder / "DevToolsActivePort", process)
        async with aiohttp.ClientSession(trust_env=False) as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                tabs = [tab for tab in await answer.json() if tab["type"] == "page"]
            async with session.ws_connect(tabs[0]["webSocketDebuggerUrl"], max_msg_size=1 << 26) as socket:
                yield Page(socket)
    finally:
        process.terminate()
        process.wait()


async def _port(path: Path, process: "subprocess.Popen[bytes]") -> int:
    deadline = time.monotonic() + WAIT
    while time.monotonic() < deadline and process.poll() is None:
        if path.is_file() and "\n" in (text := path.read_text()):
            return int(text.split("\n")[0])
        await asyncio.sleep(0.05)
    raise RuntimeError("Chromium does not start")

"""The page of ``bstk demo`` in a real browser, served by the command as a user runs it."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import bsformat
from bsformat import format_size
from tests.browser import CHROMIUM, Page, chromium

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)"),
    pytest.mark.skipif(find_spec("gradio") is None, reason="gradio is not installed (extra demo)"),
]

pytest_plugins = ["tests.realmodel"]

#: A folder; where it is set, the pictures of `test_the_page_of_a_real_model` go there.
SCREENSHOTS = os.environ.get("BSTK_SCREENSHOTS")
LOADED = "document.querySelectorAll('#levels-0 svg, #levels-1 svg, #curve svg, .facts').length === 5"
WRITTEN = "!document.querySelector('#write').disabled && document.querySelector('#text-1 textarea').value.length > 0"
UNDER_WAY = "/^\\d+ tokens?$/.test(document.querySelector('#note-1').innerText.trim())"


@contextmanager
def demo(folder: Path, *arguments: object) -> Iterator[dict[str, Any]]:
    """The command on a free port; gives what it prints, and ends it as Ctrl-C does.

    Whatever its libraries ask of other machines would go through the proxy that they are told of.
    """
    with open(folder / "stderr", "w") as err, socket.create_server(("127.0.0.1", 0)) as proxy:
        way = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        told = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"), way)
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "bitstack.tools.cli", "demo", *map(str, arguments), "--port", "0", "--json"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=err,
            text=True,
            env={name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | told,
        )
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert line, (folder / "stderr").read_text()
            yield json.loads(line)
        finally:
            process.send_signal(signal.SIGINT)
            code = process.wait(30)
            process.stdout.close()
        proxy.setblocking(False)
        with pytest.raises(BlockingIOError):
            proxy.accept()
    assert (code, (folder / "stderr").read_text().splitlines()[1:]) == (0, ["bstk: ended"])


def in_browser(tmp_path: Path, url: str, act: Callable[[Page], Awaitable[None]], **size: int) -> None:
    async def run() -> None:
        async with chromium(tmp_path / "profile", **size) as page:
            await page.open(url)
            await page.until(LOADED)
            await act(page)
            assert page.complaints == []
            # No CDN, no fonts, no telemetry: the server is all that the browser was asked to go to.
            assert [r for r in page.requests if not r.startswith((url, "data:", "blob:"))] == []
            assert any("/gradio_api/queue/join" in request for request in page.requests)

    asyncio.run(run())


async def text_of(page: Page, side: int) -> str:
    return str(await page.value(f"document.querySelector('#text-{side} textarea').value"))


async def resident(page: Page, side: int) -> int:
    return int(await page.value(f"document.querySelector('#state-{side} .facts').dataset.resident"))


async def type_budget(page: Page, side: int, value: float) -> None:
    """Type a number into the field beside a slider."""
    field = f"#budget-{side} input[type=number]"
    await page.click(field)
    await page.value(f"document.querySelector('{field}').select()")
    await page.type(str(value))
    await page.key("Tab")


def test_two_models_write_and_follow_their_sliders(curved: Path, tmp_path: Path) -> None:
    async def act(page: Page) -> None:
        assert told["models"] == 2
        assert told["reason"] in await page.text("#models")
        with bsformat.open(curved) as file:
            # Norms are held in the type that the model computes in, float32.
            wider = await resident(page, 1) - file.total_bytes
            assert wider == sum(2 * t.rows * t.columns for t in file.model_tensors.values() if not t.packed)
            # Typed, and dragged.
            await type_budget(page, 0, 30)
            plan = file.plan((30 << 10) - wider)
            await page.until(f"document.querySelector('#state-0 .facts').dataset.blocks === '{plan.n_blocks}'")
            assert await resident(page, 0) == plan.resident_bytes + wider
            assert f"{format_size(plan.resident_bytes + wider)}, counted from the tensors" in await page.text(
                "#state-0"
            )
            label = await page.value("document.querySelector('#levels-0 svg').getAttribute('aria-label')")
            await page.drag("#budget-0 input[type=range]", 0.3, 0.99)
            await page.until(f"document.querySelector('#state-0 .facts').dataset.resident > {50 << 10}")
            assert label != await page.value("document.querySelector('#levels-0 svg').getAttribute('aria-label')")
            await type_budget(page, 0, 30)
            await page.until(f"document.querySelector('#state-0 .facts').dataset.blocks === '{plan.n_blocks}'")
        assert "about 20.00" in await page.text("#curve")
        assert await page.value("document.querySelectorAll('#curve circle').length") == 3 + 2

        # Token by token: the text has been of many lengths before it is whole.
        watch = (
            "window.seen = new Set(); setInterval(() => seen.add(document.querySelector('#text-0 textarea').value), 5)"
        )
        await page.value(f"{watch}; 0")
        await page.click("#write")
        await page.until(WRITTEN)
        assert await page.value("seen.size") > 5
        assert "48 tokens, " in await page.text("#note-0")
        assert await text_of(page, 0) != await text_of(page, 1)

    with demo(tmp_path, curved, "--prompt", "the sea is wide", "--max-new-tokens", "48", "--raw") as told:
        in_browser(tmp_path, told["url"], act)


def test_one_model_goes_from_side_to_side(tiny_bstk: Path, tmp_path: Path) -> None:
    async def act(page: Page) -> None:
        assert told["models"] == 1
        assert await resident(page, 1) == -1
        assert "the one model stands at the other side" in await page.text("#state-1")
        await page.click("#write")
        await page.until(WRITTEN)
        with bsformat.open(tiny_bstk) as file:
            assert await resident(page, 0) == -1
            assert await resident(page, 1) >= file.total_bytes
        await page.click("#write")
        await page.until(UNDER_WAY)
        await page.click("#stop")
        await page.until("document.querySelector('#note-1').innerText.trim().endsWith('; stopped')")
        await page.until(WRITTEN.split(" && ")[0])  # and can be asked again
        # Who leaves while it writes holds nobody up.
        await page.click("#write")
        await page.until(UNDER_WAY)
        await page.open(told["url"])
        await page.until(LOADED)
        await page.click("#write")
        await page.until(WRITTEN)

    with demo(
        tmp_path, tiny_bstk, "--models", "one", "--prompt", "the sea is wide", "--max-new-tokens", "200", "--raw"
    ) as told:
        in_browser(tmp_path, told["url"], act)


@pytest.mark.model
def test_the_page_of_a_real_model(smollm2_bstk: Path, tmp_path: Path) -> None:
    async def act(page: Page) -> None:
        await page.click("#write")
        await page.until("document.querySelector('#text-1 textarea').value.length > 40", 120)
        # Moved while it writes: it goes on with the blocks of another budget.
        before = await resident(page, 0)
        await type_budget(page, 0, 80)
        await page.until(f"document.querySelector('#state-0 .facts').dataset.resident > {before}")
        assert (80 << 20) - (1 << 20) < await resident(page, 0) <= 80 << 20
        if SCREENSHOTS:
            await page.until("document.querySelector('#text-0 textarea').value.length > 200", 120)
            await page.screenshot(Path(SCREENSHOTS) / "demo.png")
        await page.until(WRITTEN, 120)
        assert "Rayleigh" in await text_of(page, 1) or len(await text_of(page, 1)) > 100

    with demo(tmp_path, smollm2_bstk, "--budget", "60MiB", "--max-new-tokens", "64") as told:
        in_browser(tmp_path, told["url"], act, width=1100, height=1180)

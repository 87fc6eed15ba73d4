"""The page of the JavaScript reader, in a real browser against a real web server."""

import asyncio
import json
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import bsformat
from tests.browser import CHROMIUM, Page, chromium
from tests.servers import Nginx, Scripted

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)")

READER = Path(__file__).resolve().parents[2] / "spec" / "readers" / "js"
VALID = READER.parents[1] / "vectors" / "valid"
#: Where `BSTK_SCREENSHOT` names a file, the picture of the page of `test_a_real_file` goes there.
SCREENSHOT = os.environ.get("BSTK_SCREENSHOT")


OPENED = "document.querySelector('#opened')?.hidden === false"


def serve(nginx: Nginx) -> None:
    for name in ("index.html", "bstk.js", "src", "page", "vendor"):
        source = READER / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, nginx.root / name)


def in_browser(tmp_path: Path, act: Callable[[Page], Awaitable[None]]) -> None:
    async def run() -> None:
        async with chromium(tmp_path / "profile") as page:
            await act(page)
            assert page.complaints == []

    asyncio.run(run())


def facts(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((VALID / f"{name}.json").read_text(encoding="utf-8"))
    return loaded


def test_a_person_pastes_a_url_drags_the_budget_and_verifies(nginx: Nginx, tmp_path: Path) -> None:
    serve(nginx)
    expected = facts("every-kind")
    url = nginx.put("model.bstk", (VALID / "every-kind.bstk").read_bytes())

    async def act(page: Page) -> None:
        await page.open(nginx.url("index.html"))
        await page.until("document.readyState === 'complete'")
        await page.click("#url")
        await page.type(url)
        await page.key("Enter")
        await page.until(OPENED)
        head = await page.text("#head")
        assert expected["root"] in head
        assert "10, 4 of them required" in head
        assert "config.json" in head
        assert "tokenizer/vocab.json" in head
        assert "in 1 request" in head
        assert "10 of 10 blocks" in await page.text("#plan")
        assert "perplexity 26.5" in await page.text("#plan")
        assert await page.value("document.querySelectorAll('#curve circle').length") == 2
        assert "sign\t2 of 2" in await page.text("#kinds")
        await page.drag("#budget", 0.995, 0.005)
        assert "4 of 10 blocks" in await page.text("#plan")
        assert "sign\t0 of 2" in await page.text("#kinds")
        assert (
            await page.value("document.querySelector('#strip').getAttribute('aria-label')") == "4 of 10 blocks loaded"
        )
        assert "w\t3 \N{MULTIPLICATION SIGN} 10\tF16\t0 of 6" in await page.text("#tensors")
        # A budget by the keyboard, at which one of the vectors says what is loaded.
        await page.key("End")
        await page.until("document.querySelector('#plan').innerText.startsWith('10 of 10')")
        await page.click("#verify")
        await page.until("document.querySelector('#verify-text').innerText.startsWith('Sound: 10 blocks')")
        assert "url=http" in await page.value("location.search")

    in_browser(tmp_path, act)
    ranges = [r.range for r in nginx.log() if r.uri == "/model.bstk"]
    assert ranges == ["bytes=0-16383"]


def test_the_budget_of_the_slider_is_that_of_the_reader(nginx: Nginx, tmp_path: Path) -> None:
    serve(nginx)
    nginx.put("model.bstk", (VALID / "kinds-mixed.bstk").read_bytes())

    async def act(page: Page) -> None:
        await page.open(nginx.url("index.html?url=model.bstk"))
        await page.until(OPENED)
        with bsformat.open(VALID / "kinds-mixed.bstk") as file:
            for step in (0, 1, 250, 500, 999, 1000):
                event = "e.dispatchEvent(new Event('input'))"
                await page.value(f"(e => {{ e.value = {step}; {event} }})(document.querySelector('#budget'))")
                span = file.total_bytes - file.minimum_bytes
                plan = file.plan(int(file.minimum_bytes + span * step / 1000 + 0.5))
                assert (await page.text("#plan")).startswith(f"{plan.n_blocks} of {len(file)} blocks")

    in_browser(tmp_path, act)


def test_a_file_in_volumes(nginx: Nginx, tmp_path: Path) -> None:
    serve(nginx)
    names = facts("volumes-of-one-block-each")["objects"]
    for name in names:
        nginx.put(f"files/{name}", (VALID / name).read_bytes())

    async def act(page: Page) -> None:
        await page.open(nginx.url(f"index.html?url=files/{names[0]}"))
        await page.until(OPENED)
        assert f"10, up to {names[-1]}" in await page.text("#head")
        assert {r.uri for r in nginx.log() if r.uri.startswith("/files/")} == {f"/files/{names[0]}"}
        await page.click("#verify")
        await page.until("document.querySelector('#verify-text').innerText.startsWith('Sound: 10 blocks')")
        nginx.put(f"files/{names[4]}", (VALID / names[4]).read_bytes() + b"\0")
        await page.open(nginx.url(f"index.html?url=files/{names[0]}"))
        await page.until(OPENED)
        await page.click("#verify")
        await page.until("document.querySelector('#verify-text').innerText.startsWith('Damaged: 1 part of')")
        assert "volume-trailing-bytes" in await page.text("#problems")

    in_browser(tmp_path, act)
    asked = {r.uri for r in nginx.log() if r.uri.startswith("/files/")}
    assert asked == {f"/files/{name}" for name in names}


def test_damage_and_refusals_are_said(nginx: Nginx, tmp_path: Path) -> None:
    serve(nginx)
    data = bytearray((VALID / "every-kind.bstk").read_bytes())
    data[-1] ^= 1
    nginx.put("damaged.bstk", bytes(data))
    nginx.put("other.bstk", b"GGUF" + bytes(300))
    root = facts("every-kind")["root"]

    async def act(page: Page) -> None:
        await page.open(nginx.url("index.html?url=damaged.bstk&root=" + root.upper()))
        await page.until(OPENED)
        await page.click("#verify")
        await page.until("document.querySelector('#verify-text').innerText.startsWith('Damaged: 1 part of')")
        assert "block-digest" in await page.text("#problems")
        for query, reason in (("other.bstk", "not-bstk"), ("damaged.bstk&root=" + "0" * 64, "root-mismatch")):
            await page.open(nginx.url("index.html?url=" + query))
            await page.until("document.querySelector('#error') && !document.querySelector('#error').hidden")
            assert (await page.text("#error")).startswith(f"{reason}:")
            assert await page.value("document.querySelector('#opened').hidden")

    in_browser(tmp_path, act)


def test_a_file_of_another_origin(nginx: Nginx, scripted: Scripted, tmp_path: Path) -> None:
    serve(nginx)
    scripted.data = (VALID / "head-beyond-the-first-read.bstk").read_bytes()
    allowed = {"Access_Control_Allow_Origin": "*"}
    exposed = allowed | {"Access_Control_Expose_Headers": "Content-Range, ETag"}

    async def act(page: Page) -> None:
        scripted.reply = lambda request: scripted.good(request, **exposed)
        await page.open(nginx.url("index.html?url=" + scripted.url()))
        await page.until(OPENED)
        assert [r.headers.get("if-match") for r in scripted.requests] == [None, None]
        assert {r.headers.get("accept-encoding") for r in scripted.requests} == {"identity"}
        scripted.reply = lambda request: scripted.good(request, **allowed)
        await page.open(nginx.url("index.html?url=" + scripted.url()))
        await page.until("document.querySelector('#error')?.hidden === false")
        assert "another origin must expose it" in await page.text("#error")

    in_browser(tmp_path, act)
    assert len(scripted.requests) == 3  # none of them asks first what is allowed


def test_a_hostile_name_stays_text(nginx: Nginx, tmp_path: Path) -> None:
    serve(nginx)
    nginx.put("model.bstk", (VALID / "names.bstk").read_bytes())

    async def act(page: Page) -> None:
        await page.open(nginx.url("index.html?url=model.bstk"))
        await page.until(OPENED)
        assert "__proto__" in await page.text("#tensors")
        assert "constructor = __proto__" in await page.text("#head")

    in_browser(tmp_path, act)


def test_every_control_has_a_name_and_the_page_needs_nothing_from_elsewhere(nginx: Nginx, tmp_path: Path) -> None:
    serve(nginx)
    nginx.put("model.bstk", (VALID / "every-kind.bstk").read_bytes())

    async def act(page: Page) -> None:
        await page.open(nginx.url("index.html?url=model.bstk"))
        await page.until(OPENED)
        await page.call("Accessibility.enable")
        nodes = (await page.call("Accessibility.getFullAXTree"))["nodes"]
        roles = {"button", "textbox", "searchbox", "slider", "spinbutton", "image", "progressbar", "region"}
        found = [
            (n["role"]["value"], n["name"]["value"]) for n in nodes if not n["ignored"] and n["role"]["value"] in roles
        ]
        assert len(found) > 10
        assert [role for role, name in found if not name.strip()] == []
        hosts = await page.value(
            "performance.getEntriesByType('resource').map(r => new URL(r.name).protocol + new URL(r.name).host)"
        )
        assert set(hosts) <= {f"http:127.0.0.1:{nginx.port}", "data:"}
        for width in (1000, 360):
            await page.call(
                "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False
            )
            assert await page.value("innerWidth") == width
            assert await page.value("document.documentElement.scrollWidth <= innerWidth")

    in_browser(tmp_path, act)


def test_a_real_file(nginx: Nginx, tmp_path: Path) -> None:
    named = os.environ.get("BSTK_TEST_FILE")
    if named is None:
        pytest.skip("BSTK_TEST_FILE names no packed file")
    serve(nginx)
    (nginx.root / "model.bstk").symlink_to(Path(named).resolve())
    with bsformat.open(named) as file:
        root, count = file.root, len(file)

    async def act(page: Page) -> None:
        await page.open(nginx.url("index.html?url=model.bstk"))
        await page.until(OPENED)
        assert root in await page.text("#head")
        assert "in 2 requests" in await page.text("#head")
        await page.drag("#budget", 0.99, 0.35)
        assert f"of {count:,} blocks" in await page.text("#plan")
        if SCREENSHOT:
            await page.value("window.scrollTo(0, 0)")
            await page.screenshot(Path(SCREENSHOT))
        await page.click("#verify")
        await page.until(f"document.querySelector('#verify-text').innerText.startsWith('Sound: {count:,} blocks')")

    in_browser(tmp_path, act)
    sizes = [r.bytes for r in nginx.log() if r.uri == "/model.bstk"]
    assert len(sizes[:2]) == 2
    assert sizes[0] == 16384

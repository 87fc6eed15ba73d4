"""Who may ask the server of the page for what."""

import asyncio
import socket
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from bitstack.tools.web import server
from bsformat import BstkError

needs_gradio = pytest.mark.skipif(find_spec("gradio") is None, reason="gradio is not installed (extra demo)")


async def served(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"page"})


def ask(path: str = "/", token: str | None = None, query: str = "", **headers: str) -> tuple[int, dict[str, str]]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {}

    given = {"host": "127.0.0.1:7860"} | headers
    scope = {
        "type": "http",
        "path": path,
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
    }
    asyncio.run(server.Guard(served, token)(scope, receive, send))
    return sent[0]["status"], {name.decode(): value.decode() for name, value in sent[0]["headers"]}


def test_the_page_is_served_with_a_policy_that_keeps_the_browser_here() -> None:
    status, headers = ask()
    assert status == 200
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "http" not in headers["content-security-policy"]
    assert ask("/gradio_api/queue/join", origin="http://127.0.0.1:7860")[0] == 200


@pytest.mark.parametrize("host", ["localhost:7860", "127.0.0.1", "[::1]:7860", "127.8.8.8"])
def test_loopback_names_are_served(host: str) -> None:
    assert ask(host=host)[0] == 200


@pytest.mark.parametrize("host", ["evil.example", "", "127.0.0.1.evil.example", "192.168.1.2:7860"])
def test_a_name_that_was_pointed_at_loopback_is_refused(host: str) -> None:
    assert ask(host=host)[0] == 403


def test_other_origins_are_refused() -> None:
    assert ask("/gradio_api/queue/join", origin="https://evil.example")[0] == 403
    assert ask("/gradio_api/queue/join", origin="null")[0] == 403


@pytest.mark.parametrize(
    "path",
    ["/gradio_api/upload", "/gradio_api/file=/etc/passwd", "/gradio_api/proxy=http://x/", "/gradio_api/info", "/login"],
)
def test_what_the_page_does_not_need_is_not_there(path: str) -> None:
    assert ask(path)[0] == 404


def test_beyond_loopback_a_token_is_asked_for_once() -> None:
    there = {"host": "10.0.0.5:7860"}
    assert ask(token="secret", **there)[0] == 401
    assert ask(token="secret", query="token=wrong", **there)[0] == 401
    status, headers = ask(token="secret", query="token=secret", **there)
    assert (status, headers["location"]) == (303, "/")
    assert headers["set-cookie"] == "bstk-demo=secret; Path=/; HttpOnly; SameSite=Strict"
    assert ask(token="secret", cookie="a=b; bstk-demo=secret", **there)[0] == 200
    assert ask(token="secret", cookie="bstk-demo=other", **there)[0] == 401
    assert ask("/gradio_api/queue/data", token="secret", **there)[0] == 401
    assert ask("/config", token="secret", **there)[0] == 401
    assert ask("/manifest.json", token="secret", **there)[0] == 200  # browsers ask for it without cookies


@needs_gradio
def test_a_port_that_is_taken_is_one_line(failed: Callable[..., str], tiny_bstk: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        line = failed("demo", tiny_bstk, "--port", taken.getsockname()[1])
    assert line.startswith("cannot listen on 127.0.0.1 port ")
    assert line.endswith(": Address already in use; --port 0 takes a free one [address]")
    with pytest.raises(BstkError, match="cannot listen on not-an-address"):
        server.listen("not-an-address", 0)


def test_without_gradio_the_extra_is_named(
    failed: Callable[..., str], tiny_bstk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitstack.tools.demo_command.find_spec", lambda name: None)
    assert failed("demo", tiny_bstk) == "bstk demo needs gradio: pip install 'bitstack[demo]' [demo]"


@needs_gradio
def test_a_budget_below_the_minimum_is_refused_before_anything_heavy(
    failed: Callable[..., str], tiny_bstk: Path
) -> None:
    assert "below the minimum" in failed("demo", tiny_bstk, "--port", 0, "--budget", "1KiB")

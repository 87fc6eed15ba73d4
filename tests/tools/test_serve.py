"""The command that serves, as a process: what it says, whom it lets in, and how it ends."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from bitstack.tools import serve_command
from tests.tools.conftest import Bstk


@contextmanager
def serving(file: Path, *options: str, **env: str) -> Iterator[tuple["subprocess.Popen[str]", dict[str, Any]]]:
    """The process, and what it printed when it was ready."""
    command = [sys.executable, "-P", "-m", "bitstack.tools.cli", "serve", str(file), "--port", "0", "--json", *options]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, env=os.environ | env, text=True, **pipes)  # type: ignore[call-overload]
    try:
        lines = iter(process.stdout.readline, "}\n")
        text = "".join(line for line in lines if line) if process.poll() is None else ""
        yield process, json.loads(text + "}")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def test_it_ends_when_what_runs_has_ended(tiny_bstk: Path) -> None:
    options = ("--host", "0.0.0.0", "--floor", "40%", "--budget", "100%", "--name", "sea", "--context", "200")
    with serving(tiny_bstk, *options, BSTK_TOKEN="s3cret") as (process, ready):
        assert (ready["model"], ready["context"]) == ("sea", 200)
        assert ready["resident_bytes"] == ready["governor"]["ceiling_bytes"] > ready["governor"]["floor_bytes"]
        url = ready["url"].replace("0.0.0.0", "127.0.0.1")
        assert httpx.get(f"{url}/models").status_code == 401
        with openai.OpenAI(base_url=url, api_key="s3cret", max_retries=0, timeout=60) as client:
            body = {"model": "sea", "prompt": "the sea", "max_tokens": 150, "n": 3, "logit_bias": {"0": -100}}
            stream = client.completions.create(**body, stream=True)
            chunks = iter(stream)
            next(chunks)
            process.send_signal(signal.SIGTERM)
            *_, last = chunks
            assert last.choices[0].finish_reason == "length"
        assert process.wait(60) == 0
        out, err = process.communicate()
        assert out == ""
        lines = err.splitlines()
        assert lines[0].startswith("bstk: listening on http://0.0.0.0:")
        assert [line for line in lines if line.startswith("bstk: ready: sea on http://0.0.0.0:")]
        assert lines[-2:] == ["bstk: stopping; 1 requests are being answered", "bstk: stopped"]
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/models")


def test_it_ends_after_the_grace_time_whatever_runs(tiny_bstk: Path) -> None:
    with serving(tiny_bstk, "--grace", "0") as (process, ready):
        assert ready["model"] == "tiny"
        body = {"model": "tiny", "prompt": "the sea", "max_tokens": 240, "n": 8, "logit_bias": {"0": -100}}
        with httpx.stream("POST", f"{ready['url']}/completions", json=body | {"stream": True}, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(signal.SIGINT)
            *_, last, _ = lines
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "stopping"
        assert process.wait(60) == 0


def test_what_fails_before_anything_is_loaded(
    failed: Callable[..., str], tiny_bstk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BSTK_TOKEN", raising=False)
    free = ("--port", "0")
    assert "set BSTK_TOKEN" in failed("serve", tiny_bstk, "--host", "0.0.0.0", *free)
    monkeypatch.setenv("BSTK_TOKEN", "")
    assert "set BSTK_TOKEN" in failed("serve", tiny_bstk, "--host", "0.0.0.0", *free)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "cannot listen there" in failed("serve", tiny_bstk, "--port", taken.getsockname()[1])
    assert "no such file" in failed("serve", tmp_path / "none.bstk", *free)
    assert "below the minimum" in failed("serve", tiny_bstk, "--budget", "10", *free)
    assert "above --ceiling" in failed("serve", tiny_bstk, "--floor", "90%", "--ceiling", "50%", *free)
    assert "--progressive grows" in failed("serve", tiny_bstk, "--floor", "50%", "--progressive", *free)
    monkeypatch.setattr(serve_command, "_PACKAGES", ("never_heard_of",))
    assert "pip install 'bitstack[serve]'" in failed("serve", tiny_bstk, *free)


def test_what_fails_while_it_is_loaded(bstk: Bstk, tiny_bstk: Path) -> None:
    ended = bstk("serve", tiny_bstk, "--port", "0", "--context", "1000")
    assert ended.code == 1
    first, last = ended.err.splitlines()
    assert first.startswith("bstk: listening on http://127.0.0.1:")
    assert "--context 1000 is more than this model can read, 256 tokens" in last


@pytest.mark.parametrize(
    "options",
    [("--port", "70000"), ("--parallel", "0"), ("--max-body", "none"), ("--budget", "much"), ("--grace", "-1")],
)
def test_wrong_usage(bstk: Bstk, tiny_bstk: Path, options: tuple[str, str]) -> None:
    assert bstk("serve", tiny_bstk, *options).code == 2

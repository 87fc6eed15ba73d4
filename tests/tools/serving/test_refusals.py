"""What is refused, and how: the status, the parameter, the cause, and one sentence that says what to do."""

import json
import socket
from typing import Any

import openai
import pytest
from pydantic import ValidationError

from bitstack.tools.serving.hosts import is_loopback_name, listen
from bitstack.tools.serving.schemas import ChatRequest, CompletionRequest
from bsformat.errors import BstkError
from tests.tools.serving.conftest import CHAT, PROMPT, Served

COMPLETION: dict[str, Any] = {"model": "tiny", "prompt": PROMPT}
USER = {"role": "user", "content": "sea"}


def refused(answer: Any, status: int, code: str, param: str | None = None) -> str:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == (code, param)
    assert error["type"]
    assert "\n" not in error["message"]
    message: str = error["message"]
    return message


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"temperature": 3}, "invalid_value", "temperature"),
        ({"temperature": "hot"}, "invalid_value", "temperature"),
        ({"top_p": -0.1}, "invalid_value", "top_p"),
        ({"n": 0}, "invalid_value", "n"),
        ({"n": 5}, "invalid_value", "n"),
        ({"n": True}, "invalid_value", "n"),
        ({"max_tokens": 0}, "invalid_value", "max_tokens"),
        ({"max_tokens": 127}, "context_length_exceeded", "messages"),
        ({"messages": [{"role": "user", "content": "sea " * 200}]}, "context_length_exceeded", "messages"),
        ({"messages": []}, "invalid_value", "messages"),
        ({"messages": [{"role": "cat", "content": "x"}]}, "invalid_value", "messages.0.role"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "unsupported_parameter", "messages"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "unsupported_parameter",
            "messages",
        ),
        ({"tools": [{"type": "function"}]}, "unsupported_parameter", "tools"),
        ({"response_format": {"type": "json_object"}}, "unsupported_parameter", "response_format"),
        ({"modalities": ["audio"]}, "unsupported_parameter", "modalities"),
        ({"store": True}, "unsupported_parameter", "store"),
        ({"colour": "red"}, "unknown_parameter", "colour"),
        ({"stop": ["a"] * 5}, "invalid_value", "stop"),
        ({"stop": ""}, "invalid_value", "stop"),
        ({"stop": [1]}, "invalid_value", "stop"),
        ({"stop": {}}, "invalid_value", "stop"),
        ({"messages": [{"role": "user", "content": [{"text": "sea"}]}]}, "invalid_value", "messages"),
        ({"messages": [{"role": "user", "content": {"text": "sea"}}]}, "invalid_value", "messages"),
        ({"messages": [{"role": "user", "content": ["sea"]}]}, "invalid_value", "messages"),
        ({"stop": "x" * 600}, "invalid_value", "stop"),
        ({"logit_bias": {"sea": 1}}, "invalid_value", "logit_bias"),
        ({"logit_bias": {"99999": 1}}, "invalid_value", "logit_bias"),
        ({"logit_bias": {"5": 101}}, "invalid_value", "logit_bias"),
        ({"logit_bias": {"5": "x"}}, "invalid_value", "logit_bias"),
        ({"logit_bias": {str(n): 1 for n in range(2000)}}, "invalid_value", "logit_bias"),
        ({"logit_bias": [5]}, "invalid_value", "logit_bias"),
        ({"top_logprobs": 2}, "invalid_value", "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "invalid_value", "top_logprobs"),
        ({"stream_options": {"x": 1}}, "unknown_parameter", "stream_options.x"),
        ({"seed": 1 << 70}, "invalid_value", "seed"),
    ],
)
def test_a_chat_that_cannot_be_answered(served: Served, change: dict[str, Any], code: str, param: str) -> None:
    refused(served.post(**(CHAT | change)), 400, code, param)


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"prompt": ""}, "invalid_value", "prompt"),
        ({"prompt": []}, "invalid_value", "prompt"),
        ({"prompt": [1, 100000]}, "invalid_value", "prompt"),
        ({"prompt": [[1], [-1]]}, "invalid_value", "prompt"),
        ({"prompt": [[]]}, "invalid_value", "prompt"),
        ({"prompt": [1, "sea"]}, "invalid_value", "prompt"),
        ({"prompt": [True]}, "invalid_value", "prompt"),
        ({"prompt": None}, "invalid_value", "prompt"),
        ({"prompt": {"text": "sea"}}, "invalid_value", "prompt"),
        ({"prompt": ["a"] * 5}, "invalid_value", "n"),
        ({"echo": True}, "unsupported_parameter", "echo"),
        ({"best_of": 3}, "unsupported_parameter", "best_of"),
        ({"suffix": "end"}, "unsupported_parameter", "suffix"),
        ({"logprobs": 6}, "invalid_value", "logprobs"),
    ],
)
def test_a_completion_that_cannot_be_made(served: Served, change: dict[str, Any], code: str, param: str) -> None:
    answer = served.post("/v1/completions", **(COMPLETION | change))
    refused(answer, 400, code, param)
    assert not served.passes.lengths


def test_errors_are_those_of_the_client(served: Served) -> None:
    with pytest.raises(openai.NotFoundError, match="this server has 'tiny'") as missing:
        served.chat(model="gpt-x")
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError, match="at most 4") as wrong:
        served.chat(n=5)
    assert wrong.value.param == "n"
    with pytest.raises(openai.NotFoundError):
        served.client.models.retrieve("gpt-x")


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[1]", b"null", b'"x"', b"[" * 100_000, b"\xff\xfe", b'{"model": NaN}', b"1" * 5000]
)
def test_a_body_that_is_no_object(served: Served, body: bytes) -> None:
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/budget"):
        method = "PUT" if path.endswith("budget") else "POST"
        answer = served.raw.request(method, path, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400, (path, answer.text)
        assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "hostile",
    [
        {"messages": [{}] * 9999},
        {str(n): 0 for n in range(9999)},
        {"stream_options": {str(n): 0 for n in range(9999)}},
    ],
)
@pytest.mark.parametrize("kind", [ChatRequest, CompletionRequest])
def test_a_large_wrong_body_makes_few_errors(hostile: dict[str, Any], kind: Any) -> None:
    with pytest.raises(ValidationError) as wrong:
        kind.model_validate({"prompt_": 0} | COMPLETION | CHAT | hostile)
    assert wrong.value.error_count() < 50


def test_a_form_is_no_request(served: Served) -> None:
    """What a web page may send to any host without asking."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        answer = served.raw.post("/v1/completions", content=json.dumps(COMPLETION), headers={"Content-Type": kind})
        assert answer.status_code == 400
    assert not served.passes.lengths


def test_paths_and_methods_that_are_not_there(served: Served) -> None:
    refused(served.raw.get("/v1/embeddings"), 404, "not_found")
    refused(served.raw.get("/v1/chat/completions"), 405, "method_not_allowed")
    refused(served.raw.get("/docs"), 404, "not_found")


def test_a_body_that_is_too_large(model: Any) -> None:
    with Served(model, body=2000) as served:
        answer = served.post(**(CHAT | {"user": "x" * 2000}))
        assert "2000 bytes" in refused(answer, 413, "request_too_large")
        # Without a length that says so beforehand.
        long = json.dumps(CHAT | {"user": "x" * 2000}).encode()
        pieces = (long[i : i + 100] for i in range(0, len(long), 100))
        answer = served.raw.post("/v1/chat/completions", content=pieces, headers={"Content-Type": "application/json"})
        refused(answer, 413, "request_too_large")
        assert served.chat(max_tokens=1).usage.completion_tokens == 1
        assert len(served.passes.lengths) <= 3


def test_a_token_is_asked_for(model: Any) -> None:
    with Served(model, token="s3cret") as served:
        assert served.chat(max_tokens=1).usage.completion_tokens == 1
        for headers in (
            {},
            {"Authorization": "Bearer s3cre"},
            {"Authorization": "Bearer s3cretx"},
            {"Authorization": "Basic s3cret"},
            {"Authorization": "s3cret"},
            {"Authorization": b"Bearer \xff"},
        ):
            for path in ("/v1/models", "/v1/budget", "/metrics", "/openapi.json", "/nothing"):
                with openai.DefaultHttpxClient() as other:
                    answer = other.get(served.url + path, headers=headers)
                assert "api_key" in refused(answer, 401, "invalid_api_key")
                assert answer.headers["www-authenticate"] == "Bearer"
        wrong = openai.OpenAI(base_url=f"{served.url}/v1", api_key="wrong", max_retries=0)
        with wrong as client, pytest.raises(openai.AuthenticationError):
            client.models.list()
        for path in ("/health", "/ready"):
            with openai.DefaultHttpxClient() as other:
                assert other.get(served.url + path).status_code == 200


def test_without_a_token_only_this_machine_may_be_named(served: Served) -> None:
    refused(served.raw.get("/v1/models", headers={"Host": "evil.example:80"}), 403, "host_not_allowed")
    for host in ("localhost", "LOCALHOST:8000", "[::1]:8000", "127.8.9.1"):
        assert served.raw.get("/v1/models", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    ("name", "local"),
    [
        ("localhost", True),
        ("a.localhost.", True),
        ("127.0.0.1", True),
        ("[::1]", True),
        ("", False),
        ("10.0.0.1:80", False),
        ("localhost.example", False),
        ("127.0.0.1.example", False),
        ("[::2]:1", False),
    ],
)
def test_names_of_this_machine(name: str, local: bool) -> None:
    assert is_loopback_name(name) is local


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_others_are_not_let_in_without_a_token(host: str) -> None:
    if host == "::" and not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    with pytest.raises(BstkError, match=r"set BSTK_TOKEN .*or listen on 127\.0\.0\.1"):
        listen(host, 0, token=False)


def test_an_address_that_is_taken() -> None:
    with listen("127.0.0.1", 0, token=False) as first:
        first.listen()
        with pytest.raises(BstkError, match="cannot listen there"):
            listen("127.0.0.1", first.getsockname()[1], token=False)
    with pytest.raises(BstkError, match="no such address"):
        listen("nowhere.invalid", 0, token=True)


def test_half_a_character_is_no_text(served: Served) -> None:
    """JSON can hold one, as of a text that a client cut in two."""
    for path, param, value in (
        ("/v1/completions", "prompt", '"sea \\ud83d"'),
        ("/v1/completions", "prompt", '["sea", "\\ud83d"]'),
        ("/v1/chat/completions", "messages", '[{"role": "user", "content": "sea \\ud83d"}]'),
    ):
        body = f'{{"model": "tiny", "max_tokens": 2, "{param}": {value}}}'
        answer = served.raw.post(path, content=body, headers={"Content-Type": "application/json"})
        assert "half of a surrogate pair" in refused(answer, 400, "invalid_value", param)

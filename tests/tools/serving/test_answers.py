"""What clients of OpenAI's API are answered, by its own client."""

import json
from typing import Any

import pytest

from bitstack.tools.serving.vocabulary import Vocabulary
from tests.tools.serving.conftest import CHAT, PROMPT, Served, extra, greedy


def test_a_chat_is_answered_as_transformers_would(served: Served, model: Any) -> None:
    answer = served.chat(extra_body={"return_token_ids": True})
    (choice,) = answer.choices
    ours = extra(choice)
    prompt = served.vocabulary.of_messages(CHAT["messages"])
    assert ours["prompt_token_ids"] == prompt
    assert len(prompt) > served.limits.chunk  # it was read in pieces
    assert ours["token_ids"] == greedy(model, prompt, 12)
    assert choice.message.role == "assistant"
    assert choice.message.content == served.vocabulary.written(ours["token_ids"])
    assert (choice.finish_reason, answer.object, answer.model) == ("length", "chat.completion", "tiny")
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (len(prompt), 12, len(prompt) + 12)
    plan = model.bitstack.plan
    assert ours["runs"] == [
        {
            "n_blocks": plan.n_blocks,
            "resident_bytes": model.bitstack.resident_bytes,
            "prompt_tokens": len(prompt),
            "completion_tokens": 12,
        }
    ]
    assert answer._request_id == answer.id
    assert answer.system_fingerprint == f"bstk-{model.bitstack.container.root[:16]}-{plan.n_blocks}"


def test_a_stream_is_the_same_answer_in_pieces(served: Served) -> None:
    whole = served.chat()
    chunks = list(served.chat(stream=True, stream_options={"include_usage": True}))
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    *parts, last = chunks
    assert (last.choices, last.usage) == ([], whole.usage)
    assert parts[0].choices[0].delta.role == "assistant"
    assert "".join(part.choices[0].delta.content for part in parts) == whole.choices[0].message.content
    assert [part.choices[0].finish_reason for part in parts] == [None] * (len(parts) - 1) + ["length"]
    assert extra(parts[-1].choices[0]) == extra(whole.choices[0])
    assert all(part.usage is None for part in parts)


def test_the_bytes_of_a_stream(served: Served) -> None:
    answer = served.post(**CHAT, temperature=0, stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    *events, done, nothing = answer.text.split("\n\n")
    assert (done, nothing) == ("data: [DONE]", "")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert len(chunks) == 12
    assert all("usage" not in chunk for chunk in chunks)
    plan = served.model.bitstack.plan
    header = f"blocks={plan.n_blocks}, resident-bytes={served.model.bitstack.resident_bytes}"
    assert answer.headers["x-bstk-plan"] == header == served.post(**CHAT).headers["x-bstk-plan"]


def test_completions_of_texts_and_of_tokens(served: Served, model: Any) -> None:
    tokens = served.vocabulary.of_text(PROMPT)
    expected = served.vocabulary.written(greedy(model, tokens, 16))
    one = served.complete()
    assert (one.object, one.choices[0].text, one.usage.completion_tokens) == ("text_completion", expected, 16)
    assert served.complete(prompt=tokens).choices[0].text == expected
    several = served.complete(prompt=[PROMPT, "birds fly"], n=2, max_tokens=5)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    texts = [choice.text for choice in several.choices]
    assert texts[0] == texts[1] != texts[2] == texts[3]
    assert served.complete(prompt=[tokens, [5, 6]], max_tokens=5).choices[0].text == texts[0]
    assert several.usage.prompt_tokens == len(tokens) + len(served.vocabulary.of_text("birds fly"))
    streamed = [""] * 4
    for chunk in served.complete(prompt=[PROMPT, "birds fly"], n=2, max_tokens=5, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == texts


def test_the_end_of_text_ends_an_answer(served: Served, model: Any) -> None:
    tokens = served.vocabulary.of_text(PROMPT)
    written = greedy(model, tokens, 8)
    end = written[3]
    before, served.vocabulary.ends = served.vocabulary.ends, frozenset({end})
    try:
        answer = served.complete(max_tokens=8, extra_body={"return_token_ids": True})
    finally:
        served.vocabulary.ends = before
    stop = written.index(end)
    assert answer.choices[0].finish_reason == "stop"
    assert extra(answer.choices[0])["token_ids"] == written[: stop + 1]
    assert answer.choices[0].text == served.vocabulary.written(written[:stop])


@pytest.mark.parametrize(("named", "ends"), [(None, {0}), (7, {0, 7}), ([7, 8], {0, 7, 8})])
def test_what_ends_an_answer_is_what_model_and_tokenizer_say(model: Any, named: Any, ends: set[int]) -> None:
    model.generation_config.eos_token_id = named
    try:
        assert Vocabulary(model.bitstack.tokenizer(), model).ends == ends
    finally:
        model.generation_config.eos_token_id = None


def test_a_stop_sequence_ends_an_answer_before_itself(served: Served) -> None:
    text = served.complete(max_tokens=30).choices[0].text
    stop = text[7:10]
    for options in ({"stop": stop}, {"stop": ["never there", stop]}):
        answer = served.complete(max_tokens=30, **options)
        assert answer.choices[0].text == text[: text.index(stop)]
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage.completion_tokens < 30
        pieces = [chunk.choices[0].text for chunk in served.complete(max_tokens=30, stream=True, **options)]
        assert "".join(pieces) == answer.choices[0].text


def test_a_seed_says_what_is_drawn(served: Served) -> None:
    def drawn(**options: Any) -> list[str]:
        answer = served.chat(temperature=1.5, n=3, **options)
        return [choice.message.content for choice in answer.choices]

    first = drawn(seed=7)
    assert len(set(first)) == 3  # each answer has draws of its own
    assert drawn(seed=7) == first
    assert drawn(seed=8) != first
    assert drawn() != drawn()
    assert drawn(seed=7, top_p=0) == [served.chat().choices[0].message.content] * 3


def test_probabilities_of_a_chat(served: Served) -> None:
    answer = served.chat(logprobs=True, top_logprobs=2, max_tokens=4)
    rows = answer.choices[0].logprobs.content
    assert len(rows) == 4
    for row in rows:
        assert row.token == row.top_logprobs[0].token  # the most likely one was taken
        assert row.logprob == row.top_logprobs[0].logprob >= row.top_logprobs[1].logprob
        assert row.logprob < 0
    streamed = [
        row
        for chunk in served.chat(logprobs=True, top_logprobs=2, max_tokens=4, stream=True)
        for row in chunk.choices[0].logprobs.content
    ]
    assert streamed == rows
    assert served.chat(max_tokens=1).choices[0].logprobs is None


def test_probabilities_of_a_completion(served: Served) -> None:
    answer = served.complete(logprobs=3, max_tokens=4)
    found = answer.choices[0].logprobs
    assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == 4
    assert found.text_offset[0] == 0
    assert all(max(top.values()) == own for top, own in zip(found.top_logprobs, found.token_logprobs, strict=True))


def test_a_bias_and_penalties_change_what_is_written(served: Served) -> None:
    plain = served.complete(max_tokens=8, extra_body={"return_token_ids": True})
    tokens = extra(plain.choices[0])["token_ids"]
    banned = served.complete(max_tokens=8, logit_bias={str(tokens[0]): -100}, extra_body={"return_token_ids": True})
    assert tokens[0] not in extra(banned.choices[0])["token_ids"]
    forced = served.complete(
        max_tokens=8, logit_bias={"77": 100}, presence_penalty=2, extra_body={"return_token_ids": True}
    )
    assert extra(forced.choices[0])["token_ids"] == [77] * 8
    varied = served.complete(max_tokens=8, frequency_penalty=2, extra_body={"return_token_ids": True})
    assert len(set(extra(varied.choices[0])["token_ids"])) >= len(set(tokens))


def test_models_are_listed(served: Served) -> None:
    (listed,) = served.client.models.list().data
    assert (listed.id, listed.object, listed.owned_by) == ("tiny", "model", "bstk")
    assert listed.model_extra["bitstack"] == {"root": served.model.bitstack.container.root, "context": 128}
    assert served.client.models.retrieve("tiny") == listed


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [{"type": "text", "text": PROMPT[:20]}, {"type": "text", "text": PROMPT[20:]}]},
        {"role": "user", "content": PROMPT, "name": "somebody"},
    ],
)
def test_messages_in_their_other_forms(served: Served, message: dict[str, Any]) -> None:
    assert served.chat(messages=[message]).choices[0].message == served.chat().choices[0].message


def test_what_only_tells_of_the_caller_is_ignored(served: Served) -> None:
    same = served.chat(user="me", metadata={"a": "b"}, store=False, n=1, tools=[], response_format={"type": "text"})
    assert same.choices[0].message == served.chat().choices[0].message

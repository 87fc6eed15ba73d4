"""The transcript of docs/serving.md: ``python -m bitstack.tools.bench.serving_doc FILE -o docs/serving.md``.

Serves a file as ``model``, runs each program of the transcript with the openai package, one after the other, and writes
them with what they printed between two markers of the page. The largest budget that they ask for is 120 MiB.
"""

import argparse
import contextlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from bitstack.tools.ending import ended

from .markers import between, rewrite
from .serving import served

BEGIN: Final = "<!-- made by bitstack.tools.bench.serving_doc: begin -->"
END: Final = "<!-- made by bitstack.tools.bench.serving_doc: end -->"
#: What the programs say about where the server is.
URL: Final = "http://127.0.0.1:8000"

PROGRAMS: Final = (
    f"""\
from openai import OpenAI

client = OpenAI(base_url="{URL}/v1", api_key="none")  # or the token
question = [{{"role": "user", "content": "What is the capital of France?"}}]
answer = client.chat.completions.create(model="model", messages=question, temperature=0, max_tokens=16)
print(answer.choices[0].message.content)
print(answer.usage.completion_tokens, answer.choices[0].finish_reason, answer.system_fingerprint)
print(answer.choices[0].bitstack)
""",
    """\
stream = client.chat.completions.create(
    model="model", messages=question, temperature=0, max_tokens=16, stream=True, stream_options={"include_usage": True}
)
for chunk in stream:
    for choice in chunk.choices:
        print(choice.delta.content, end="|")
print(chunk.usage.total_tokens)
""",
    """\
answer = client.completions.create(
    model="model", prompt="The sea is", max_tokens=12, n=2, seed=7, temperature=0.8, stop="."
)
for choice in answer.choices:
    print(choice.index, repr(choice.text), choice.finish_reason)
""",
    f"""\
import httpx

for budget in ("60MiB", "120MiB"):
    state = httpx.put("{URL}/v1/budget", json={{"budget": budget}}).json()
    print(state["budget_bytes"], state["resident_bytes"], state["n_blocks"], "of", state["available_blocks"])
    answer = client.chat.completions.with_raw_response.create(model="model", messages=question, max_tokens=1)
    print(answer.headers["X-Bstk-Plan"])
""",
    """\
stream = client.chat.completions.create(model="model", messages=question, temperature=0, max_tokens=12, stream=True)
for number, chunk in enumerate(stream):
    if number == 4:  # in the middle of an answer
        httpx.put("URL/v1/budget", json={"budget": "60MiB"})
print(*chunk.choices[0].bitstack["runs"], sep="\\n")
""".replace("URL", URL),
    """\
import openai

for wrong in ({"model": "gpt"}, {"n": 100}, {"max_tokens": 100_000}, {"tools": [{"type": "function"}]}):
    try:
        client.chat.completions.create(**({"model": "model", "messages": question} | wrong))
    except openai.APIStatusError as error:
        print(error.status_code, error.code, error.param, error.body["message"], sep=" | ")
""",
)


def transcript(url: str) -> Iterator[str]:
    """The programs and what they print, as a page has them.

    Args:
        url: of a server, up to its ``/v1``.
    """
    names: dict[str, Any] = {}
    for program in PROGRAMS:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(program.replace(URL, url.removesuffix("/v1")), names)
        yield f"```python\n{program}```\n\n```text\n{printed.getvalue()}```\n\n"
    names["client"].close()


def main(argv: list[str] | None = None) -> int:
    """Write the page anew; gives an exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("-o", "--output", type=Path, metavar="PAGE", required=True)
    args = parser.parse_args(argv)

    def text() -> str:
        with served(args.file, 80 << 20, 256, 8) as url:
            return "".join(transcript(url))

    def run() -> int:
        rewrite(args.output, lambda old: between(old, BEGIN, END, text, args.output))
        return 0

    return ended(run, "serving_doc")


if __name__ == "__main__":
    sys.exit(main())

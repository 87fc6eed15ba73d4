"""The programs of docs/serving.md run, and the page has them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bitstack.tools.bench import serving_doc
from bitstack.tools.bench.serving_doc import BEGIN, END, PROGRAMS
from tests.tools.serving.conftest import Served


def test_the_programs_of_the_page_run(
    model: Any, tmp_path: Path, repo_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def served(*_: object) -> Iterator[str]:
        with Served(model, parallel=8) as server:
            server.service.name = "model"
            yield f"{server.url}/v1"

    monkeypatch.setattr(serving_doc, "served", served)
    page = tmp_path / "page.md"
    page.write_text(f"before\n\n{BEGIN}\nold\n{END}\nafter\n")
    assert serving_doc.main(["model.bstk", "-o", str(page)]) == 0
    text = page.read_text()
    assert text.startswith(f"before\n\n{BEGIN}\n\n```python\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "404 | model_not_found | model | No model 'gpt' here; this server has 'model'." in text
    committed = (repo_root / "docs/serving.md").read_text()
    for program in PROGRAMS:
        assert f"```python\n{program}```" in text
        assert f"```python\n{program}```" in committed

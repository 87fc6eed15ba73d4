"""What every model of a run is measured with: the same windows of the same texts, and the same tasks."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import blake3

from bitstack import perplexity
from bitstack.task import prepare, task_of
from bitstack.text import Windows, file_windows
from bitstack.tools.console import reporter

if TYPE_CHECKING:
    from .zero_shot import ZeroShot


@dataclass(frozen=True, slots=True)
class Text:
    """One text of a run: its windows, and what identifies it in the results."""

    windows: Windows
    record: dict[str, Any]

    @classmethod
    def read(cls, tokenizer: Any, path: str, window: int, count: int | None) -> "Text":
        """The first ``count`` windows of ``window`` tokens of a file (all, if None).

        Raises:
            ModelError: see `bitstack.text.file_windows`.
        """
        windows = file_windows(tokenizer, path, window, count)
        with open(path, "rb") as file:
            digest = blake3.blake3(file.read()).hexdigest()
        record = {
            "name": windows.name,
            "blake3": digest,
            "window": windows.ids.shape[1],
            "windows": len(windows),
            "tokens": windows.ids.numel(),
        }
        return cls(windows, record)


class Yardstick:
    """Measures one model after another.

    Attributes:
        texts: at least one; the first is the one that tables and plots show.
        tokenizer: of the models.
    """

    def __init__(self, texts: Sequence[Text], tokenizer: Any, zero_shot: "ZeroShot | None" = None) -> None:
        self.texts = list(texts)
        self.tokenizer = tokenizer
        self.zero_shot = zero_shot

    def measure(self, model: Any, title: str) -> dict[str, Any]:
        """Perplexity on every text, and accuracy on the tasks if there are any.

        Of a masked language model, or one from sequence to sequence, perplexity is that of what it is asked for
        (`bitstack.task`); every model is asked the same.

        Returns:
            ``perplexity`` (of the first text), ``perplexity_by_text``, ``seconds``, and ``zero_shot`` with tasks.
            A model whose logits are not finite has the perplexity inf.

        Raises:
            ModelError: the model says nothing about a text.
        """
        started = time.monotonic()
        values: dict[str, float] = {}
        total = sum(text.windows.ids.numel() for text in self.texts)
        task = task_of(model.config)
        with reporter().stage(f"measure {title}", total, "token") as advance:
            for text in self.texts:
                windows = prepare(text.windows, task, model, self.tokenizer, seed=0)
                value = perplexity(model, windows, progress=advance)
                values[text.windows.name] = math.inf if math.isnan(value) else value
        out: dict[str, Any] = {"perplexity": values[self.texts[0].windows.name], "perplexity_by_text": values}
        if self.zero_shot is not None:
            out["zero_shot"] = self.zero_shot.measure(model)
        return out | {"seconds": round(time.monotonic() - started, 3)}

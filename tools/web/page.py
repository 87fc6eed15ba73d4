"""The page: two sliders, two texts, the quality curve and the heat maps, laid out with Gradio."""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch

from bitstack.tools import summary
from bitstack.tools.console import number, printable
from bsformat import BstkError, Container, format_size

from .levels import Levels
from .pictures import COLOURS, curve_picture, escaped, levels_picture
from .sides import Sides, Standing, Written

NAMES: Final = ("Left", "Right")
#: The most tokens that the page lets a side write.
MOST_TOKENS: Final = 512
_MOST_PROMPT: Final = 20_000
_UNITS: Final = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))
_CSS: Final = f"""
.picture {{ width: 100%; height: auto; display: block; }}
.picture text {{ font: 12px system-ui, sans-serif; }}
.facts {{ display: grid; grid-template-columns: auto 1fr; gap: 0 1em; margin: 0; font-variant-numeric: tabular-nums; }}
.facts dt {{ opacity: .75; }} .facts dd {{ margin: 0; }}
.complaint {{ font-weight: 600; }}
#side-0 {{ border-top: 4px solid {COLOURS[0]}; }} #side-1 {{ border-top: 4px solid {COLOURS[1]}; }}
"""


class Facts:
    """What the page says about the two sides, as HTML."""

    def __init__(self, container: Container, sides: Sides) -> None:
        self._container, self._sides = container, sides
        self._levels = Levels(container)
        self._curve, self._record = summary.quality_curve(container), summary.perplexity_record(container)

    def head(self) -> str:
        """What the file is, and what holds the two sides."""
        model = self._container.metadata.extra.get("model")
        name = model.get("name") if isinstance(model, dict) else None
        total = self._sides.room.most
        return (
            f"<p><b>{escaped(printable(name or self._container.uri))}</b>, root "
            f"<code>{escaped(self._container.root[:16])}…</code>, at most {format_size(total)} of weights. "
            f'<span id="models">{escaped(self._sides.room.reason)}</span></p>'
        )

    def side(self, side: int, standing: Standing, note: str = "") -> str:
        """The numbers of a side; ``note`` is an error."""
        bits = summary.bits_per_parameter(self._container, standing.plan.resident_bytes)
        if standing.resident_bytes is None:
            held = (
                f"not now: the one model stands at the other side; {format_size(standing.expected)} when it writes here"
            )
        else:
            held = f"{format_size(standing.resident_bytes)}, counted from the tensors of the model"
        expected = self._curve.at(standing.plan.resident_bytes)
        rows = {
            "resident": held,
            "blocks": f"{standing.n_blocks:,} of {len(self._container):,}, {bits:.2f} bits per parameter",
            "perplexity": "not measured at this size"
            if expected is None
            else f"about {number(expected)}, by the file's curve",
        }
        items = "".join(f"<dt>{name}</dt><dd>{escaped(value)}</dd>" for name, value in rows.items())
        resident = -1 if standing.resident_bytes is None else standing.resident_bytes
        complaint = f'<p class="complaint" role="alert">{escaped(note)}</p>' if note else ""
        return f'<dl class="facts" data-resident="{resident}" data-blocks="{standing.n_blocks}">{items}</dl>{complaint}'

    def curve(self, standings: list[Standing]) -> str:
        """The quality curve with both budgets on it."""
        marks = [(name, s.plan.resident_bytes) for name, s in zip(NAMES, standings, strict=True)]
        dense = self._record.dense if self._record else None
        return curve_picture(self._curve, dense, marks, self._container.total_bytes)

    def levels(self, side: int, standing: Standing) -> str:
        """The heat map of a side."""
        return levels_picture(self._levels.grid(standing.n_blocks), side, self._levels.most)

    def memory(self) -> str:
        """What the process holds altogether."""
        return f"<p>This process holds {escaped(_process(self._sides.device))}.</p>"


def build(container: Container, sides: Sides, *, prompt: str, tokens: int, raw: bool) -> Any:
    """The page as ``gradio.Blocks``, with no request to anything but its own server.

    Args:
        prompt: text in the field for it, at first.
        tokens: tokens to write, at first.
        raw: continue the prompt as it is, without the chat template.
    """
    # Read by gradio when it is imported, and when a page is made.
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_RUN_HISTORY": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
    import gradio as gr

    facts, room = Facts(container, sides), sides.room
    unit, size = next(((u, s) for u, s in _UNITS if room.most >= 4 * s), _UNITS[-1])
    step = 10.0 ** math.floor(math.log10(max(room.most - room.least, size // 100) / size / 200))

    def panels(notes: tuple[str, str] = ("", "")) -> list[str]:
        standings = [sides.standing(0), sides.standing(1)]
        return [
            *(facts.side(i, standing, note) for i, (standing, note) in enumerate(zip(standings, notes, strict=True))),
            facts.curve(standings),
            *(facts.levels(i, standing) for i, standing in enumerate(standings)),
            facts.memory(),
        ]

    def position(budget: int) -> float:
        return round(math.ceil(budget / size / step) * step, 9)

    def moved(side: int, value: float | None) -> list[str]:
        # A page that is opened puts its sliders where the sides are: that rounds no budget, and moves no model.
        if value is None or not math.isfinite(value) or value == position(sides.standing(side).budget):
            return panels()
        try:
            sides.move(side, round(value * size))
        except BstkError as error:
            return panels((str(error), "") if side == 0 else ("", str(error)))
        return panels()

    def write(text: str | None, count: float | None) -> Iterator[list[Any]]:
        # Two texts, their notes, what `panels` gives, and the two buttons.
        texts, notes = ["", ""], ["waits", "waits"]
        buttons = [gr.update(interactive=False), gr.update(interactive=True)]
        skipped = [gr.skip()] * 6
        yield [*texts, *map(_note, notes), *panels(), *buttons]
        try:
            for event in sides.write((text or "")[:_MOST_PROMPT], _whole(count), raw):
                texts[event.side], notes[event.side] = event.text or "", _said(event)
                shown = panels() if event.text is None else skipped
                yield [*texts, *map(_note, notes), *shown, gr.skip(), gr.skip()]
        except BstkError as error:
            notes = [str(error), ""]
        yield [*texts, *map(_note, notes), *panels(), gr.update(interactive=True), gr.update(interactive=False)]

    with gr.Blocks(title="bstk demo", analytics_enabled=False, fill_width=True) as page:
        gr.HTML(facts.head())
        asked = gr.Textbox(prompt, label="Prompt", lines=2, elem_id="prompt", max_length=_MOST_PROMPT)
        with gr.Row():
            count = gr.Slider(
                1, MOST_TOKENS, min(tokens, MOST_TOKENS), step=1, label="tokens to write", scale=3, buttons=[]
            )
            go = gr.Button("Write", variant="primary", elem_id="write", scale=1)
            halt = gr.Button("Stop", interactive=False, elem_id="stop", scale=1)
        sliders, states, texts, notes, maps = [], [], [], [], []
        with gr.Row():
            for side in (0, 1):
                with gr.Column(elem_id=f"side-{side}"):
                    sliders.append(
                        gr.Slider(
                            position(room.least),
                            position(room.most),
                            position(room.budgets[side]),
                            step=step,
                            label=f"{NAMES[side]}: budget, {unit}",
                            elem_id=f"budget-{side}",
                            buttons=[],
                        )
                    )
                    states.append(gr.HTML(elem_id=f"state-{side}"))
                    texts.append(
                        gr.Textbox(
                            label=f"{NAMES[side]}: text",
                            lines=8,
                            max_lines=8,
                            interactive=False,
                            elem_id=f"text-{side}",
                        )
                    )
                    notes.append(gr.HTML(elem_id=f"note-{side}"))
        curve = gr.HTML(elem_id="curve")
        with gr.Row():
            for side in (0, 1):
                with gr.Column():
                    maps.append(gr.HTML(elem_id=f"levels-{side}"))
        memory = gr.HTML(elem_id="memory")
        outputs = [*states, curve, *maps, memory]
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        for side, slider in enumerate(sliders):
            # While one resize is under way the last position waits, and those in between are left out.
            slider.change(
                lambda value, side=side: moved(side, value),
                slider,
                outputs,
                trigger_mode="always_last",
                # Growing a remote file may take its time, which is counted beside what grows.
                show_progress="minimal",
                show_progress_on=states[side],
                api_visibility="private",
            )
        written = [*texts, *notes, *outputs, go, halt]
        for event in (go.click, asked.submit):
            event(write, [asked, count], written, concurrency_id="write", concurrency_limit=1, **quiet)
        halt.click(sides.stop, concurrency_limit=None, **quiet)
        # Another tab may have moved them since the page was made.
        page.load(
            lambda: [*(position(sides.standing(side).budget) for side in (0, 1)), *panels()],
            outputs=[*sliders, *outputs],
            **quiet,
        )
    page.queue(max_size=16, api_open=False)
    return page


def mounted(page: Any) -> Any:
    """An ASGI application that serves the page at ``/``: nothing is uploaded, uses a CDN, or is described as an API."""
    import gradio as gr
    from fastapi import FastAPI

    theme = gr.themes.Base(
        font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"], primary_hue="blue"
    )
    return gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        page,
        "/",
        footer_links=[],
        run_history=False,
        show_error=True,
        max_file_size=1,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        theme=theme,
        css=_CSS,
    )


def _whole(count: float | None) -> int:
    """A number of tokens, whatever a browser sends."""
    return int(max(1, min(count, MOST_TOKENS))) if count is not None and math.isfinite(count) else 1


def _said(event: Written) -> str:
    if event.text is None:
        return "reads the prompt"
    out = f"{event.tokens} token{'' if event.tokens == 1 else 's'}"
    if event.seconds is not None and event.tokens:
        out += f", {1000 * event.seconds / event.tokens:.0f} ms each"
    return f"{out}; {event.error}" if event.error else out


def _note(text: str) -> str:
    return f"<p>{escaped(text)}</p>"


def _process(device: torch.device) -> str:
    """The memory of this process: resident pages, and what torch has allocated on a GPU."""
    out = []
    if device.type == "cuda":
        out.append(f"{format_size(torch.cuda.memory_allocated(device))} on {device}")
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        out.append(f"{format_size(pages * os.sysconf('SC_PAGE_SIZE'))} of host memory, libraries and all")
    except (OSError, ValueError, IndexError):
        out.append("host memory that this system does not tell")
    return " and ".join(out)

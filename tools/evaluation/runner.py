"""Baselines one after another: each quantised at each setting into the working copy, measured, and undone."""

import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch

from bitstack.tools.console import reporter
from bsformat import BstkError

from .baselines import Baseline, BaselineError, Calibration, Settings, Subject
from .dense import Dense
from .yardstick import Yardstick


def measure_dense(dense: Dense, yardstick: Yardstick) -> dict[str, Any]:
    """The point of the dense model in 16 bits."""
    size = dense.resident_bytes({})
    return {
        "resident_bytes": size,
        "bits_per_parameter": 8 * size / dense.parameters,
        **yardstick.measure(dense.working, "dense"),
    }


def settings_for(bits: Sequence[int], group_size: int, embeddings: Sequence[int | str]) -> list[Settings]:
    """Every combination, in the order given; two that quantise alike once.

    Args:
        embeddings: see `Settings.embeddings`.
    """
    out: dict[tuple[int, int | None], Settings] = {}
    for width in bits:
        for embedding in embeddings:
            item = Settings(width, group_size, embedding)
            out.setdefault((width, item.embedding_bits), item)
    return list(out.values())


def size_at(dense: Dense, baseline: Baseline, settings: Settings) -> int:
    """Resident bytes of the whole model, known before anything is quantised."""
    targets = [*dense.linear, *(dense.token if settings.embedding_bits is not None else ())]
    return dense.resident_bytes({t.name: baseline.size(t, settings) for t in targets})


def measure_baselines(
    dense: Dense,
    baselines: Sequence[Baseline],
    settings: Sequence[Settings],
    calibration: Calibration,
    yardstick: Yardstick,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """One point for each baseline at each setting, and what could not be measured, each with the reason.

    Linear layers are quantised once for settings that differ only in what they do to embeddings.
    """
    points: list[dict[str, Any]] = []
    skipped: list[dict[str, Any]] = []
    subject = Subject(dense.model, dense.tokenizer, dense.linear, dense.token, calibration, device=dense.working.device)
    for baseline in baselines:
        for _, alike in groupby(settings, key=lambda item: (item.bits, item.group_size)):
            group = list(alike)
            try:
                seconds = _put(dense, baseline.name, group[0], baseline.quantise_linear(subject, group[0]))
            except BaselineError as error:
                skipped += [{"name": baseline.name, **item.record(), "reason": error.message} for item in group]
                dense.restore()
                continue
            linear = dense.changed
            for item in group:
                record: dict[str, Any] = {"name": baseline.name, **item.record()}
                try:
                    more = _put(dense, baseline.name, item, baseline.quantise_token(subject, item))
                    points.append(record | _measure(dense, baseline, item, seconds + more, yardstick))
                except BaselineError as error:
                    skipped.append(record | {"reason": error.message})
                finally:
                    dense.restore(but=linear)
            dense.restore()
    return points, skipped


def _measure(
    dense: Dense, baseline: Baseline, settings: Settings, seconds: float, yardstick: Yardstick
) -> dict[str, Any]:
    size = size_at(dense, baseline, settings)
    return {
        "calibrated": baseline.calibrated,
        "resident_bytes": size,
        "bits_per_parameter": 8 * size / dense.parameters,
        "quantise_seconds": round(seconds, 3),
        **yardstick.measure(dense.working, f"{baseline.name}, {settings.label()}"),
    }


def _put(dense: Dense, name: str, settings: Settings, values: Iterator[tuple[str, torch.Tensor]]) -> float:
    """Write quantised values into the working copy; the seconds that it took."""
    started = time.monotonic()
    with reporter().stage(f"{name}, {settings.bits} bits", len(dense.linear), "tensor") as advance:
        for parameter, value in _named_errors(values, name):
            dense.put(parameter, value)
            advance(1)
    return time.monotonic() - started


def _named_errors(values: Iterator[tuple[str, torch.Tensor]], name: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Turn what a library raises into one line: a run of hours does not end with the one baseline that fails."""
    try:
        yield from values
    except BstkError:
        raise
    except Exception as error:  # libraries raise whatever they like on models that they cannot quantise
        detail = " ".join(str(error).split())[:300] or type(error).__name__
        raise BaselineError(f"{name} failed: {type(error).__name__}: {detail}") from None

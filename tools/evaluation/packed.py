"""Measuring a .bstk file: one model that grows from size to size."""

from collections.abc import Mapping
from typing import Any

from bitstack.tools import summary
from bitstack.tools.console import reporter
from bitstack.tools.loading import expected_bytes, load_with_bar
from bsformat import Container, format_size
from bsformat.errors import BudgetError, ModelError

from .yardstick import Yardstick


def measure_packed(
    container: Container, sizes: Mapping[int, str | int], yardstick: Yardstick, device: Any, dtype: Any
) -> dict[int, dict[str, Any]]:
    """One point for each size, in ascending order: the model only ever grows.

    Args:
        sizes: bytes -> the budget as it was written. One that is a plain number was taken from a baseline, not asked
            for: where the file has no model so small, there is no point for it.

    Raises:
        BudgetError: a budget that was written is below the minimum of the file.
        ModelError: the model says nothing about a text.
    """
    points = {}
    model: Any = None
    for size, budget in sorted(sizes.items()):
        before = container.source.bytes_read
        try:
            if model is None:
                model = load_with_bar(container, budget, device, dtype)
            else:
                added = expected_bytes(container, size) - model.bitstack.plan.resident_bytes
                with reporter().stage("load", max(added, 0), "B") as advance:
                    model.bitstack.resize(budget, advance)
        except BudgetError:
            if isinstance(budget, str):
                raise
            continue
        try:
            measured = yardstick.measure(model, format_size(size))
        except ModelError as error:
            raise error.at(container.uri) from None
        points[size] = {
            "budget": size,
            "resident_bytes": model.bitstack.resident_bytes,
            "n_blocks": model.bitstack.plan.n_blocks,
            "bits_per_parameter": summary.bits_per_parameter(container, model.bitstack.resident_bytes),
            "bytes_read": container.source.bytes_read - before,
            **measured,
        }
    return points

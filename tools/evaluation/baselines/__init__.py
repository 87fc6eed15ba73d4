"""Baselines by name. Their libraries are imported when they quantise, not before."""

from typing import Final

from .base import Baseline, BaselineError, Calibration, Settings, Subject
from .hqq import Hqq
from .llmcompressor import Awq, Gptq
from .rtn import Rtn

__all__ = ["BASELINES", "Baseline", "BaselineError", "Calibration", "Settings", "Subject"]

_ALL: Final[tuple[Baseline, ...]] = (Rtn(), Rtn(symmetric=True), Gptq(), Awq(), Hqq())
BASELINES: Final = {baseline.name: baseline for baseline in _ALL}

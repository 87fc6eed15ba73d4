"""How far a product may be off before its time counts for nothing."""

from typing import Final

import torch

#: Errors in units of roundoff of the type, relative to the root mean square of the exact result. Rounding y, the
#: weights and the scaled input once each gives about 0.7 in the mean and, among a hundred million results, at most 10.
MEAN_LIMIT: Final = 1.5
MOST_LIMIT: Final = 14.0


class WrongResult(Exception):
    """A result is further from the exact one than rounding explains."""


def errors_of(y: torch.Tensor, x: torch.Tensor, dense: torch.Tensor) -> dict[str, float]:
    """Errors of y = x·Wᵀ against float64, relative to the root mean square of the exact result.

    Args:
        y: [tokens, rows]; what is not finite makes both errors infinite.
        x: [tokens, columns].
        dense: W, float64 [rows, columns].

    Returns:
        `error_rms`, root mean square over all results, and `error_max`, the largest of any.
    """
    exact = x.double() @ dense.T
    off = (y.double() - exact).nan_to_num_(nan=torch.inf, posinf=torch.inf, neginf=torch.inf)
    size = exact.square().mean().sqrt()
    return {"error_rms": float(off.square().mean().sqrt() / size), "error_max": float(off.abs().max() / size)}


def check(errors: dict[str, float], dtype: torch.dtype, slack: float = 1.0) -> None:
    """Refuse errors that rounding to `dtype` does not explain; `slack` multiplies what is allowed.

    Raises:
        WrongResult: with both errors and what they may be.
    """
    unit = torch.finfo(dtype).eps / 2 * slack
    limits = {"error_rms": MEAN_LIMIT * unit, "error_max": MOST_LIMIT * unit}
    if not all(errors[name] <= limit for name, limit in limits.items()):
        said = ", ".join(f"{name} {errors[name]:.3g} (at most {limit:.3g})" for name, limit in limits.items())
        raise WrongResult(f"wrong result: {said}")

"""Random matrices and statistics for the tests of the decomposition."""

import torch

from bitstack.decompose import Problem
from bitstack.measure import LinearMeasure, linear_scales


def correlated(count: int, rows: int, columns: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weights [B, M, N] with heavy tails, Hessians [B, N, N] of correlated inputs of very different sizes, and squared
    gradients [B, M]."""
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(count, rows, columns, generator=g) ** 3 * 0.1
    mix = torch.randn(count, columns, columns, generator=g) * torch.logspace(-1, 1, columns)[:, None]
    x = torch.randn(count, 2 * columns + 64, columns, generator=g) @ mix
    output = torch.rand(count, rows, generator=g, dtype=torch.float64) * 10 + 0.01
    return weight, x.mT @ x / x.shape[1], output


def linear_problem(count: int = 1, rows: int = 48, columns: int = 75, seed: int = 0) -> Problem:
    """`correlated` matrices with the scales that follow from their statistics."""
    weight, hessian, output = correlated(count, rows, columns, seed)
    scales = [linear_scales(h, o) for h, o in zip(hessian, output, strict=True)]
    return Problem.of(list(weight), scales, LinearMeasure(hessian, output), seed)

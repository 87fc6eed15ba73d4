"""Choosing codes column by column: the loop in torch, and the kernel that holds a tile in registers."""

import pytest
import torch

from bitstack.kernels import walk_columns

SHAPES = ((1, 1, 1), (5, 1, 3), (37, 3, 70))


def _problem(columns: int, matrices: int, rows: int, shared: bool, device: torch.device) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(columns + rows)
    left = torch.randn(columns, matrices, rows, generator=g)
    step = torch.rand(columns, matrices, rows, generator=g) + 0.1
    step[:, :, ::3] *= -1  # a low-rank magnitude may be negative
    count = 1 if shared else matrices
    factor = torch.randn(count, columns, columns, generator=g).triu(1) * 0.2
    factor.diagonal(dim1=-2, dim2=-1).copy_(torch.rand(count, columns, generator=g) + 0.5)
    return left.to(device), step.to(device), factor.to(device)


def _run(
    left: torch.Tensor, step: torch.Tensor, factor: torch.Tensor, bits: int, backend: str
) -> tuple[torch.Tensor, torch.Tensor]:
    codes = torch.full(left.shape, -128, dtype=torch.int8, device=left.device)
    errors = torch.full_like(left, torch.nan)
    walk_columns(left.clone(), step, factor, codes, errors, bits, backend=backend)
    return codes, errors


def _by_hand(
    left: torch.Tensor, step: torch.Tensor, factor: torch.Tensor, codes: torch.Tensor, bits: int
) -> torch.Tensor:
    """The targets that the columns had when their turn came, in float64, given the codes before them."""
    left, step, factor = left.double().cpu(), step.double().cpu(), factor.double().cpu().expand(left.shape[1], -1, -1)
    wanted = torch.empty_like(left)
    for j in range(len(left)):
        wanted[j] = left[j]
        error = (left[j] - codes[j].double().cpu() * 2.0 ** (1 - bits) * step[j]) / factor[:, j, j, None]
        left[j + 1 :] -= factor[:, j, j + 1 :].T[:, :, None] * error[None]
    return wanted


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", [1, 3, 6])
@pytest.mark.parametrize("shared", [True, False])
def test_every_code_is_the_nearest_to_its_target(
    case: tuple[str, torch.device], shape: tuple[int, int, int], bits: int, shared: bool
) -> None:
    backend, device = case
    if backend == "reference":
        pytest.skip("the walk has no backend of that name")
    left, step, factor = _problem(*shape, shared, device)
    codes, errors = _run(left, step, factor, bits, backend)
    wanted, exact = _by_hand(left, step, factor, codes, bits), step.double().cpu()
    assert int(codes.abs().max()) <= 2**bits - 1
    assert bool((codes % 2 != 0).all())
    value = codes.double().cpu() * 2.0 ** (1 - bits) * exact
    assert torch.allclose(
        errors.double().cpu(),
        (wanted - value) / factor.double().cpu().diagonal(dim1=-2, dim2=-1).T[..., None],
        atol=1e-3,
    )
    for other in (-2, 2):  # no neighbour is nearer, but for rounding
        neighbour = (codes.double().cpu() + other).clamp(1 - 2**bits, 2**bits - 1) * 2.0 ** (1 - bits) * exact
        assert bool(((wanted - value).abs() <= (wanted - neighbour).abs() + 1e-3).all())


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_device_that_is_not_the_current_one() -> None:
    problem = _problem(37, 3, 70, True, torch.device("cpu"))
    one, other = (_run(*(t.to(f"cuda:{i}") for t in problem), 3, "triton") for i in (0, 1))
    assert torch.equal(one[0].cpu(), other[0].cpu())
    assert torch.equal(one[1].cpu(), other[1].cpu())

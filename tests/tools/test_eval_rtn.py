"""Rounding to nearest, and the count of its bytes, against sums done by hand."""

import math

import pytest
import torch

from bitstack.targets import find_targets
from bitstack.text import Windows
from bitstack.tools.evaluation.baselines import BASELINES, Settings
from bitstack.tools.evaluation.baselines.rtn import Rtn, round_rows
from bitstack.tools.evaluation.sizes import matrix_bytes


def by_hand(group: list[float], bits: int, symmetric: bool) -> list[float]:
    """One group, in Python floats."""

    def half(value: float) -> float:
        return float(torch.tensor(value).half())

    levels = 2**bits - 1
    if symmetric:
        scale = half(2 * max(abs(v) for v in group) / levels)
        low, high, zero = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1, 0
    else:
        least, greatest = min(*group, 0.0), max(*group, 0.0)
        scale = half((greatest - least) / levels)
        low, high, zero = 0, levels, round(-least / scale)
    return [(min(max(round(v / scale) + zero, low), high) - zero) * scale for v in group]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("columns", [7, 10, 23])
def test_rounds_each_group_of_each_row_alone(bits: int, symmetric: bool, columns: int) -> None:
    weight = torch.randn(3, columns, generator=torch.Generator().manual_seed(columns))
    weight[1] += 2  # all of a group on one side of 0
    rounded = round_rows(weight, bits, 10, symmetric)
    expected = [
        [v for start in range(0, columns, 10) for v in by_hand(row[start : start + 10], bits, symmetric)]
        for row in weight.tolist()
    ]
    torch.testing.assert_close(rounded, torch.tensor(expected), rtol=1e-5, atol=1e-6)
    for row in rounded:
        assert len(row[:10].unique()) <= 2**bits


@pytest.mark.parametrize("symmetric", [False, True])
def test_zeros_and_denormals_stay_finite(symmetric: bool) -> None:
    weight = torch.tensor([[0.0, 0.0], [1e-12, -1e-12], [1e6, -1e6]])
    rounded = round_rows(weight, 4, 2, symmetric)
    assert torch.isfinite(rounded).all()
    assert torch.equal(rounded[:2], torch.zeros(2, 2))


def test_more_bits_are_closer() -> None:
    weight = torch.randn(64, 100, generator=torch.Generator().manual_seed(0))
    errors = [float((round_rows(weight, bits, 64, False) - weight).norm()) for bits in (2, 3, 4, 5, 6, 8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 50


@pytest.mark.parametrize(
    ("rows", "columns", "bits", "group", "zero_bits", "expected"),
    [
        (4, 128, 4, 64, 4, 4 * 128 // 2 + 8 * 2 + 8 // 2),
        (4, 128, 4, 64, 0, 4 * 128 // 2 + 8 * 2),
        (4, 128, 4, 64, 16, 4 * 128 // 2 + 8 * 4),
        # Three groups a row, the last one short; 69 codes of 3 bits take 26 bytes, 9 × 19 bits take 22.
        (3, 23, 3, 10, 3, 26 + 22),
    ],
)
def test_counts_codes_scales_and_zero_points(
    rows: int, columns: int, bits: int, group: int, zero_bits: int, expected: int
) -> None:
    assert matrix_bytes(rows, columns, bits=bits, group_size=group, zero_bits=zero_bits) == expected


def test_a_conv1d_is_grouped_along_its_inputs() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2, n_positions=16)).eval()
    target = next(t for t in find_targets(model) if t.name.endswith("mlp.c_fc.weight"))
    assert target.transposed
    from bitstack.tools.evaluation.baselines import Calibration, Subject

    subject = Subject(
        model, None, [target], [], Calibration(lambda: Windows("none", torch.empty(0, 1))), torch.device("cpu")
    )
    ((name, value),) = Rtn().quantise_linear(subject, Settings(2, 8, 16))
    original = model.get_parameter(name).detach()
    assert value.shape == original.shape
    torch.testing.assert_close(value.T, round_rows(original.T.contiguous(), 2, 8, False))
    assert Rtn().size(target, Settings(2, 8, 16)) == math.ceil(16 * 64 * 2 / 8) + math.ceil(64 * 2 * 18 / 8)


def test_the_names_of_the_command_line_are_those_there_are() -> None:
    from bitstack.tools import eval_options

    assert tuple(BASELINES) == eval_options.BASELINES
    assert [baseline.name for baseline in BASELINES.values()] == list(BASELINES)

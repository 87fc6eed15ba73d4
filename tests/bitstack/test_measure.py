"""What an error costs, and the scales that follow from it, by hand and by plain matrices in float64."""

import pytest
import torch

from bitstack.measure import FREQUENCY_FLOOR, LinearMeasure, TokenMeasure, linear_scales, token_scales, with_floor
from bitstack.scales import COLUMN_FLOOR, ROW_FLOOR, Scales
from bitstack.walk import Walker
from tests.matrices import correlated

Use = tuple[torch.Tensor, torch.Tensor]


def _uses(count: int, rows: int, columns: int) -> tuple[Use, ...]:
    """Two uses: row weights [B, M] that differ much, and a second moment [N, N] each."""
    g = torch.Generator().manual_seed(3)
    moments = [torch.randn(3 * columns, columns, generator=g) for _ in range(2)]
    return tuple((torch.rand(count, rows, generator=g).double() ** 4, x.T @ x / len(x)) for x in moments)


# Losses


def test_the_loss_of_a_linear_layer_is_a_trace() -> None:
    error, hessian, output = correlated(2, 9, 20)
    got = LinearMeasure(hessian, output).rows(error)
    assert (got.dtype, got.shape) == (torch.float64, (2, 9))
    for b in range(2):
        e, h = error[b].double(), hessian[b].double()
        torch.testing.assert_close(got[b], output[b] * (e @ h @ e.T).diagonal(), rtol=1e-4, atol=0)


def test_the_loss_of_a_linear_layer_is_that_of_its_output() -> None:
    """The squared gradient times the squared change of the output, over the inputs that the Hessian is from."""
    g = torch.Generator().manual_seed(0)
    x, error = torch.randn(50, 6, generator=g), torch.randn(4, 6, generator=g)
    output = torch.tensor([1.0, 0.0, 10.0, 0.5]).double()
    wanted = (output * (x @ error.T).double().square().mean(0)).sum()
    got = LinearMeasure((x.T @ x / 50)[None], output[None]).rows(error[None]).sum()
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=0)


def test_matrices_may_share_a_hessian() -> None:
    error, hessian, output = correlated(3, 5, 12)
    shared, each = LinearMeasure(hessian[:1], output), LinearMeasure(hessian[:1].repeat(3, 1, 1), output)
    torch.testing.assert_close(shared.rows(error), each.rows(error), rtol=1e-6, atol=0)
    assert shared.walker().order.shape == (1, 12)
    torch.testing.assert_close(shared.select([2, 1]).rows(error[[2, 1]]), each.rows(error)[[2, 1]], rtol=1e-6, atol=0)


def test_the_loss_of_a_token_matrix_is_the_sum_over_its_uses() -> None:
    uses = _uses(2, 8, 5)
    error = torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(1))
    got = TokenMeasure(uses).rows(error)
    for b in range(2):
        for row in range(8):
            e = error[b, row].double()
            wanted = sum(float(w[b, row]) * float(e @ a.double() @ e) for w, a in uses)
            assert float(got[b, row]) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("token", [False, True])
def test_some_rows_and_some_matrices(token: bool) -> None:
    error, hessian, output = correlated(3, 8, 10)
    measure = TokenMeasure(_uses(3, 8, 10)) if token else LinearMeasure(hessian, output)
    all_ = measure.rows(error)
    chosen = torch.tensor([6, 1, 1, 0])
    torch.testing.assert_close(measure.rows(error[:, chosen], chosen), all_[:, chosen], rtol=1e-6, atol=0)
    torch.testing.assert_close(measure.select([2, 0]).rows(error[[2, 0]]), all_[[2, 0]], rtol=1e-6, atol=0)


# Walkers


def test_linear_layers_are_walked_along_their_hessian() -> None:
    _, hessian, output = correlated(2, 5, 12)
    mine, plain = LinearMeasure(hessian, output).walker(), Walker.along(hessian)
    assert torch.equal(mine.order, plain.order)
    assert torch.equal(mine.factor, plain.factor)
    assert torch.equal(LinearMeasure(hessian, output).select([1]).walker().factor, plain.factor[1:])


def test_token_matrices_are_walked_along_the_sum_of_their_uses() -> None:
    (w0, a0), (w1, a1) = _uses(2, 8, 5)
    mine = TokenMeasure(((w0, a0), (w1, a1))).walker()
    summed = [float(w0[b].sum()) * a0 + float(w1[b].sum()) * a1 for b in range(2)]
    plain = Walker.along(torch.stack(summed))
    assert torch.equal(mine.order, plain.order)
    torch.testing.assert_close(mine.factor, plain.factor, rtol=1e-4, atol=1e-5)


# Scales


def test_linear_scales_come_from_inputs_and_gradients() -> None:
    scales = linear_scales(torch.tensor([[4.0, 1.0], [1.0, 16.0]]), torch.tensor([1.0, 9.0]).double())
    assert scales.col.tolist() == pytest.approx([3 / 2, 3 / 4], rel=1e-3)  # rms 2 and 4, mean 3
    assert scales.row.tolist() == pytest.approx([2 / 1, 2 / 3], rel=1e-3)  # rms 1 and 3, mean 2


def test_token_scales_by_hand() -> None:
    uses = [
        (torch.tensor([1.0, 3.0]).double(), torch.diag(torch.tensor([2.0, 4.0]))),
        (torch.tensor([4.0, 0.0]).double(), torch.diag(torch.tensor([0.0, 2.0]))),
    ]
    scales = token_scales(uses)
    # Rows: 1·3 + 4·1 = 7 and 3·3 + 0 = 9. Columns: 2·2 + 0·2 = 4 and 4·2 + 2·2 = 12.
    rows, columns = torch.tensor([7.0, 9.0]).sqrt(), torch.tensor([4.0, 12.0]).sqrt()
    torch.testing.assert_close(scales.row.float(), rows.mean() / rows, rtol=1e-3, atol=0)
    torch.testing.assert_close(scales.col.float(), columns.mean() / columns, rtol=1e-3, atol=0)


def test_tokens_that_never_occur_still_count() -> None:
    weights = with_floor(torch.tensor([3.0, 0.0, 0.0]).double())
    assert weights.tolist() == pytest.approx([3 + FREQUENCY_FLOOR, FREQUENCY_FLOOR, FREQUENCY_FLOOR])


def _weights(**kinds: torch.Tensor) -> list[object]:
    return [pytest.param(value, id=name) for name, value in kinds.items()]


@pytest.mark.parametrize(
    "weight",
    _weights(
        ordinary=torch.linspace(0.1, 3, 9),
        dead_channels=torch.tensor([0.0, 1, 2, 0, 3]),
        all_dead=torch.zeros(5),
        constant=torch.full((5,), 7.0),
        one_giant=torch.cat([torch.ones(99_999), torch.tensor([1e30])]),
        huge=torch.full((4,), 1e30),
        tiny=torch.full((4,), 1e-30),
        single=torch.tensor([3.0]),
        float64=torch.rand(6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
    ),
)
def test_scales_are_finite_and_positive(weight: torch.Tensor) -> None:
    scales = Scales.of(weight, weight)
    for values, floor in ((scales.row, ROW_FLOOR), (scales.col, COLUMN_FLOOR)):
        assert values.dtype == torch.float16
        assert values.shape == weight.shape
        assert torch.isfinite(values).all()
        assert (values >= 2.0**-14).all()  # the smallest normal float16: nothing loses precision
        assert float(values.max()) <= 1.001 / floor


def test_scales_are_reciprocals_relative_to_the_mean() -> None:
    weight = torch.tensor([1.0, 2.0, 4.0, 9.0])
    scales = Scales.of(weight, weight * 1e9)
    torch.testing.assert_close(scales.row.float(), 4.0 / weight, rtol=2.0**-11, atol=0)
    assert torch.equal(scales.row, scales.col)


def test_dead_channels_get_the_floor() -> None:
    scales = Scales.of(torch.tensor([0.0, 2.0]), torch.tensor([0.0, 2.0]))
    assert scales.row[0] == torch.tensor(1 / ROW_FLOOR).half()
    assert scales.col[0] == torch.tensor(1 / COLUMN_FLOOR).half()

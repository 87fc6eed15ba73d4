"""What stands in for a weight: the same answers as the tensor, through products and look-ups where there are any."""

import copy
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional

from bitstack.layers import BitStackParameter
from bitstack.packed import PackedTensor
from bitstack.standin import Matrix, Stack, StandIn, Whole
from bsformat import Form, Tensor

ROWS, COLUMNS, EXPERTS = 24, 16, 3


class Counting:
    """A dense matrix as a source that counts what it is asked for."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight
        self.rows, self.columns = weight.shape
        self.asked: list[str] = []

    @property
    def dtype(self) -> torch.dtype:
        return self.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.weight.device

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        self.asked.append("linear")
        return functional.linear(x, self.weight)

    def lookup(self, ids: torch.Tensor) -> torch.Tensor:
        self.asked.append("lookup")
        return functional.embedding(ids, self.weight)

    def dense(self) -> torch.Tensor:
        self.asked.append("dense")
        return self.weight


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


X, IDS, BIAS = _random(5, COLUMNS), torch.tensor([[3, 0], [7, 3]]), _random(ROWS)

#: What a module may do with its weight W [ROWS, COLUMNS], and what its source is then asked for.
USES: dict[str, tuple[Callable[[Any], Any], list[str]]] = {
    "linear": (lambda w: functional.linear(X, w), ["linear"]),
    "linear with bias": (lambda w: functional.linear(X, w, BIAS), ["linear"]),
    "linear by name": (lambda w: functional.linear(input=X, weight=w, bias=BIAS), ["linear"]),
    "three dimensions": (lambda w: functional.linear(X[None], w), ["linear"]),
    "matmul": (lambda w: X @ w.T, ["linear"]),
    "matmul of a vector": (lambda w: X[0] @ w.T, ["linear"]),
    "torch.matmul": (lambda w: torch.matmul(X, w.t()), ["linear"]),
    "torch.mm": (lambda w: torch.mm(X, w.transpose(0, 1)), ["linear"]),
    "mm": (lambda w: X.mm(w.mT), ["linear"]),
    "transposed twice": (lambda w: functional.linear(X, w.T.T), ["linear"]),
    "embedding": (lambda w: functional.embedding(IDS, w), ["lookup"]),
    "embedding with padding": (lambda w: functional.embedding(IDS, w, 0), ["lookup"]),
    "no transpose": (lambda w: functional.linear(X, w.transpose(-1, -1)), ["linear"]),
    # All else gets the matrix.
    "matmul of the other side": (lambda w: w @ X.T, ["dense"]),
    "linear of the transpose": (lambda w: functional.linear(_random(5, ROWS), w.T), ["dense"]),
    "matmul of the transpose": (lambda w: _random(5, ROWS) @ w, ["dense"]),
    "embedding of the transpose": (lambda w: functional.embedding(IDS, w.T), ["dense"]),
    "addmm": (lambda w: torch.addmm(BIAS, X, w.T), ["dense"]),
    "sum": (lambda w: torch.sum(w), ["dense"]),
    "norm of a list": (lambda w: torch.stack([w, w]), ["dense", "dense"]),
    "product of elements": (lambda w: torch.ones(ROWS, COLUMNS) * w, ["dense"]),
    "method": (lambda w: w.norm(), ["dense"]),
    "rows": (lambda w: w[2:5], ["dense"]),
    "one row": (lambda w: w[2], ["dense"]),
    "view": (lambda w: w.view(-1), ["dense"]),
}


@pytest.mark.parametrize("name", USES)
def test_a_matrix_answers_as_the_tensor_does(name: str) -> None:
    use, asked = USES[name]
    source = Counting(_random(ROWS, COLUMNS))
    assert torch.allclose(use(Matrix(source)), use(source.weight), rtol=1e-5, atol=1e-6)
    assert source.asked == asked


def test_an_embedding_with_a_largest_norm_is_left_to_torch() -> None:
    source = Counting(_random(ROWS, COLUMNS))
    expected = functional.embedding(IDS, source.weight.clone(), max_norm=1.0)
    assert torch.allclose(functional.embedding(IDS, Matrix(source), max_norm=1.0), expected)
    assert source.asked == ["dense"]


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("index", [0, 2, -1, torch.tensor(1), torch.tensor(2, dtype=torch.int32)])
def test_a_stack_gives_one_matrix_at_a_time(flipped: bool, index: Any) -> None:
    sources = [Counting(_random(ROWS, COLUMNS) + e) for e in range(EXPERTS)]
    stack = Stack(list(sources), flipped=flipped)
    dense = torch.stack([s.weight.T if flipped else s.weight for s in sources])
    assert (stack.shape, stack.ndim, len(stack), stack.numel()) == (dense.shape, 3, EXPERTS, dense.numel())
    if flipped:
        got, wanted = X @ stack[index], X @ dense[index]
    else:
        got, wanted = functional.linear(X, stack[index]), functional.linear(X, dense[index])
    assert torch.allclose(got, wanted, rtol=1e-5, atol=1e-6)
    asked = [s.asked for s in sources]
    assert asked[int(index) % EXPERTS] == ["linear"]
    assert sum(map(len, asked)) == 1


def test_a_stack_as_a_whole() -> None:
    sources = [Counting(_random(ROWS, COLUMNS) + e) for e in range(EXPERTS)]
    x = _random(EXPERTS, 5, COLUMNS)
    dense = torch.stack([s.weight for s in sources])
    flipped = Stack(list(sources), flipped=True)
    assert torch.allclose(torch.bmm(x, flipped), torch.bmm(x, dense.mT), rtol=1e-5, atol=1e-5)
    assert torch.allclose(x.bmm(flipped), torch.bmm(x, dense.mT), rtol=1e-5, atol=1e-5)
    assert [s.asked for s in sources] == [["linear", "linear"]] * EXPERTS
    # All else gets all of it.
    stack = Stack(list(sources))
    assert torch.equal(stack[1:], dense[1:])
    assert torch.equal(stack[torch.tensor([0, 2])], dense[[0, 2]])
    assert torch.allclose(torch.bmm(_random(EXPERTS, 5, ROWS), stack), torch.bmm(_random(EXPERTS, 5, ROWS), dense))
    assert torch.equal(stack.mT, dense.mT)
    with pytest.raises(IndexError):
        stack[EXPERTS]


def test_what_is_asked_without_computing_rebuilds_nothing() -> None:
    source = Counting(_random(ROWS, COLUMNS).bfloat16())
    matrix = Matrix(source)
    assert (matrix.shape, matrix.T.shape) == ((ROWS, COLUMNS), (COLUMNS, ROWS))
    assert (matrix.size(), matrix.size(-1), matrix.dim(), matrix.ndim) == ((ROWS, COLUMNS), COLUMNS, 2, 2)
    assert (len(matrix), matrix.numel()) == (ROWS, ROWS * COLUMNS)
    assert (matrix.dtype, matrix.device) == (torch.bfloat16, torch.device("cpu"))
    assert matrix.is_floating_point()
    assert not matrix.requires_grad
    assert not isinstance(matrix, torch.Tensor)
    assert source.asked == []
    with pytest.raises(AttributeError):
        matrix.nothing_of_this_name  # noqa: B018
    with pytest.raises(AttributeError):
        matrix._private  # noqa: B018


def test_arithmetic_with_a_number_is_an_error_and_no_wrong_answer() -> None:
    for operation in (operator.mul, operator.add, operator.truediv):
        with pytest.raises(TypeError):
            operation(Matrix(Counting(_random(ROWS, COLUMNS))), 2)


def _parameter(shape: tuple[int, ...], group: int, transposed: bool = False) -> BitStackParameter:
    packed = PackedTensor(Tensor("w", shape, "F32", group, 0, 1, transposed))
    tensor = packed.tensor
    packed.set_scales(torch.rand(tensor.rows).half() + 0.5, torch.rand(tensor.columns).half() + 0.5)
    for chain in range(tensor.n_chains):
        rows = min(group, tensor.rows - chain * group)
        signs = torch.randint(0, 256, (rows * -(-tensor.columns // 8),), dtype=torch.uint8)
        factors = torch.randn(rows + tensor.columns).half().view(torch.uint8)
        packed.push(chain, Form("sign", rank=1, factors="F16"), torch.cat([signs, factors]))
    return BitStackParameter(packed, torch.float32)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("shape", "group", "kind"),
    [
        ((24, 16), 24, Matrix),
        ((24, 16), 10, Matrix),
        ((3, 8, 16), 8, Stack),
        # Chains that are no matrices of the stack: rebuilt as a whole, and right all the same.
        ((3, 8, 16), 24, Whole),
        ((3, 8, 16), 4, Whole),
        ((2, 3, 4, 16), 4, Whole),
    ],
)
def test_a_packed_parameter_of_any_shape(
    shape: tuple[int, ...], group: int, kind: type[StandIn], transposed: bool
) -> None:
    parameter = _parameter(shape, group, transposed)
    dense = parameter.packed.dense()
    stand_in = parameter.stand_in()
    assert type(stand_in) is kind
    assert (stand_in.shape, stand_in.dtype) == (dense.shape, torch.float32)
    assert torch.equal(stand_in.dense(), dense)
    if len(shape) == 2:
        got = (X @ stand_in) if transposed else functional.linear(X, stand_in)
        wanted = (X @ dense) if transposed else functional.linear(X, dense)
    else:
        got, wanted = stand_in[1] @ torch.ones(dense.shape[-1]), dense[1] @ torch.ones(dense.shape[-1])
    assert torch.allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_a_copy_of_a_module_has_its_own_weight() -> None:
    holder = torch.nn.Linear(16, 24, bias=False)
    _parameter((24, 16), 24).install(holder, "weight")
    other = copy.deepcopy(holder)
    wanted = holder(X)
    assert torch.equal(other(X), wanted)
    holder.packed_weight.packed.pop(0)
    assert not holder(X).any()
    assert torch.equal(other(X), wanted)
    assert list(holder.parameters()) == []
    assert holder.state_dict() == {}

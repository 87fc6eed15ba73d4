"""The weights of a whole model in the three forms that are compared: packed chains, bf16, int4."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, TypeVar

import torch
from torch.nn import functional

from bitstack import kernels
from bitstack.kernels import Chain, Room, Table, Together, payload_bytes

from .accuracy import check, errors_of
from .anchors import int4_linear, random_int4
from .decoder import GROUPS, Decoder, Linear, Linears, Shape
from .random_chains import DEFAULT_RANK, SPARSE_SHARE, default_chain

T = TypeVar("T")
DTYPE: Final = torch.bfloat16
BITS: Final = range(1, 9)
EMBEDDING_BITS: Final = 4


@dataclass
class Model:
    """A decoder and what it holds.

    Attributes:
        nbytes: resident bytes of all weights.
        chains, tables: of every matrix in order, for packed models; the tables are what is computed with.
        notes: for the report.
    """

    decoder: Decoder
    nbytes: int
    chains: list[Chain] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)


def shapes_of(shape: Shape) -> list[tuple[int, int, float]]:
    """Rows, columns and sparse share of every matrix that is resized: those of the layers, then the output head."""
    layers = [(*size, SPARSE_SHARE) for _ in range(shape.layers) for size in shape.matrices.values()]
    return [*layers, (shape.vocabulary, shape.hidden, 0.0)]


def chain_bytes(rows: int, columns: int, bits: int, share: float) -> int:
    """Bytes that a chain of `default_chain` takes; at most, but for a chance in thousands."""
    signs = rows * ((columns + 7) // 8)
    size = payload_bytes(rows, columns, DEFAULT_RANK, "F8_E4M3") + (bits - 1) * signs + 2 * (rows + columns)
    if share:
        entries = share * rows * columns
        size += 4 + 4 * -(-rows // 64) + 2 * rows + int(3 * (entries + 4 * entries**0.5))
    return size


def planned(shape: Shape, budget: int, fixed: int) -> list[int]:
    """Bits of every matrix so that all just fit a budget: the first so many have one more than the rest.

    Args:
        budget: bytes for everything.
        fixed: bytes of it that are spent already.

    Raises:
        ValueError: not even one bit of all fits.
    """
    sizes = shapes_of(shape)
    bits = [0] * len(sizes)
    left = budget - fixed
    for level in BITS:
        for number, (rows, columns, share) in enumerate(sizes):
            more = chain_bytes(rows, columns, level, share) - (
                chain_bytes(rows, columns, level - 1, share) if level > 1 else 0
            )
            if more > left:
                if level == 1:
                    raise ValueError(f"{budget} bytes do not hold one bit of every matrix")
                return bits
            left -= more
            bits[number] = level
    return bits


def packed(
    shape: Shape, bits: Sequence[int], capacity: Sequence[int], as_chain: bool, device: torch.device, backend: str
) -> Model:
    """A model of chains; every matrix of the first layer is compared with float64 first.

    Args:
        bits: of every matrix.
        capacity: bits that each may grow to.
        as_chain: whether the embedding is a chain too, of a fixed number of bits; else it is dense.

    Raises:
        WrongResult: a product is off.
    """
    embed, embed_bytes = _embedding(shape, as_chain, device, backend)
    chains: list[Chain] = []
    tables: list[Table] = []
    for (rows, columns, share), own, most in zip(shapes_of(shape), bits, capacity, strict=True):
        chains.append(default_chain(rows, columns, own, device, share=share))
        tables.append(_table(chains[-1], most + bool(share)))
    products = [_products(own, backend) for own in grouped(tables)]
    for multiply, group in zip(products[: len(GROUPS)], grouped(chains), strict=False):
        x = torch.randn(1, group[0].columns, device=device).to(DTYPE)
        for chain, y in zip(group, multiply(x), strict=True):
            check(errors_of(y, x, kernels.rebuild(chain, dtype=torch.float64, backend="reference")), DTYPE)
    decoder = _decoder(shape, products, embed, device)
    size = embed_bytes + decoder.nbytes + sum(chain.nbytes for chain in chains)
    notes: dict[str, Any] = {"embedding": f"chain of {EMBEDDING_BITS} bits" if as_chain else "bfloat16"}
    notes |= {"bits_least": min(bits), "bits_most": max(bits)}
    return Model(decoder, size, chains, tables, notes)


def packed_embedding(device: torch.device, backend: str) -> bool:
    """Whether rows of a chain can be looked up inside a CUDA graph, that is without waiting for the device."""
    if device.type != "cuda":
        return True
    chain = default_chain(512, 256, EMBEDDING_BITS, device, share=0.0)
    ids = torch.ones(1, dtype=torch.int64, device=device)
    kernels.rows(chain, ids, dtype=DTYPE, backend=backend)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that this mode does not see everything
        torch.cuda.set_sync_debug_mode("error")
        try:
            kernels.rows(chain, ids, dtype=DTYPE, backend=backend)
        except RuntimeError:
            return False
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return True


def embedding_bytes(shape: Shape, as_chain: bool) -> int:
    """Bytes of the embedding of a packed model."""
    if as_chain:
        return chain_bytes(shape.vocabulary, shape.hidden, EMBEDDING_BITS, 0.0)
    return shape.vocabulary * shape.hidden * DTYPE.itemsize


def _embedding(shape: Shape, as_chain: bool, device: torch.device, backend: str) -> tuple[Linear, int]:
    """From token ids to rows, and the bytes held; never resized."""
    if not as_chain:
        table = _random(shape.vocabulary, shape.hidden, device)
        return lambda ids: functional.embedding(ids, table), table.nbytes
    chain = default_chain(shape.vocabulary, shape.hidden, EMBEDDING_BITS, device, share=0.0)
    return lambda ids: kernels.rows(chain, ids, dtype=DTYPE, backend=backend), chain.nbytes


def grouped(matrices: Sequence[T]) -> list[list[T]]:
    """One for each of `shapes_of`, by what they are multiplied by: `GROUPS` of each layer, then the head."""
    left = iter(matrices)
    layers = len(matrices) // sum(map(len, GROUPS))
    groups = [[next(left) for _ in group] for _ in range(layers) for group in GROUPS]
    return [*groups, *([one] for one in left)]


def dense(shape: Shape, device: torch.device, joined: bool = False) -> Model:
    """A model in bfloat16; `joined`: matrices that are multiplied by the same x are one."""
    products: list[Linears] = []
    held: list[torch.Tensor] = []
    for sizes, columns in _sizes(shape, joined):
        held.append(_random(sum(sizes), columns, device))
        products.append(partial(_split, partial(_dense_linear, held[-1]), sizes))
    return _with_dense_embedding(shape, products if joined else _in_groups(products), held, device)


def int4(shape: Shape, device: torch.device, joined: bool = False) -> Model:
    """A model in PyTorch's int4, but for embedding and head, which stay in bfloat16; `joined` as for `dense`."""
    products: list[Linears] = []
    held: list[torch.Tensor] = []
    for sizes, columns in _sizes(shape, joined)[:-1]:
        codes, scales, _plain = random_int4(sum(sizes), columns, device)
        products.append(partial(_split, partial(int4_linear, packed=codes, scales=scales), sizes))
        held += [codes, scales]
    head = _random(shape.vocabulary, shape.hidden, device)
    products.append(partial(_split, partial(_dense_linear, head), [shape.vocabulary]))
    return _with_dense_embedding(shape, products if joined else _in_groups(products), [*held, head], device)


def _sizes(shape: Shape, joined: bool) -> list[tuple[list[int], int]]:
    """Of every matrix the rows that its results have, and its columns."""
    sizes = [(rows, columns) for rows, columns, _ in shapes_of(shape)]
    if not joined:
        return [([rows], columns) for rows, columns in sizes]
    return [([rows for rows, _ in group], group[0][1]) for group in grouped(sizes)]


def _in_groups(products: Sequence[Linears]) -> list[Linears]:
    return [partial(_each, group) for group in grouped(products)]


def _each(products: Sequence[Linears], x: torch.Tensor) -> list[torch.Tensor]:
    return [y for product in products for y in product(x)]


def _split(product: Linear, sizes: Sequence[int], x: torch.Tensor) -> Sequence[torch.Tensor]:
    y = product(x)
    return [y] if len(sizes) == 1 else torch.split(y, list(sizes), -1)


def _with_dense_embedding(
    shape: Shape, products: Sequence[Linears], held: Sequence[torch.Tensor], device: torch.device
) -> Model:
    table = _random(shape.vocabulary, shape.hidden, device)
    decoder = _decoder(shape, products, lambda ids: functional.embedding(ids, table), device)
    return Model(decoder, table.nbytes + decoder.nbytes + sum(w.nbytes for w in held), notes={"embedding": "bfloat16"})


def _decoder(shape: Shape, products: Sequence[Linears], embed: Linear, device: torch.device) -> Decoder:
    layers = [products[start : start + len(GROUPS)] for start in range(0, len(products) - 1, len(GROUPS))]
    return Decoder(shape, layers, lambda x: products[-1](x)[0], embed, dtype=DTYPE, device=device)


def _random(rows: int, columns: int, device: torch.device) -> torch.Tensor:
    return torch.empty(rows, columns, dtype=DTYPE, device=device).normal_(std=columns**-0.5)


def _dense_linear(w: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return functional.linear(x, w)


def _table(chain: Chain, capacity: int) -> Table:
    """What to compute with, for at most `capacity` blocks, of the ranks and kinds that the chain has already."""
    return Table(chain, replace(Room.of([chain]), segments=capacity))


def _products(tables: Sequence[Table], backend: str) -> Linears:
    """Of matrices by the same x: in one launch, where there are kernels for that."""
    together = Together(tables) if Together.possible(tables) else None

    def products(x: torch.Tensor) -> Sequence[torch.Tensor]:
        made = None if together is None else kernels.linear_together(x, together, backend=backend)
        return [kernels.linear(x, table, backend=backend) for table in tables] if made is None else made

    return products

"""The metadata section: what the tensors are, how their blocks are coded, and what travels along (spec §4)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from . import registry, strict


@dataclass(frozen=True, slots=True)
class Form:
    """How a block is coded: its kind, the parameters of that kind, and its codec.

    ``rank`` and ``factors`` (element type of the factors) belong to kinds with factors and are 0 and "" otherwise.
    """

    kind: str
    codec: str = "none"
    rank: int = 0
    factors: str = ""

    @property
    def has_signs(self) -> bool:
        """Whether the payload begins with one bit for each element."""
        return self.kind in ("sign", "plane")

    @property
    def has_factors(self) -> bool:
        """Whether the payload ends with factors U and V of ``rank`` columns."""
        return self.kind in ("sign", "lowrank")


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of the model, or one scale vector.

    A tensor without ``group_rows`` is *raw*: one block of its elements, row-major, of type ``dtype``. A tensor with
    ``group_rows`` is *packed*: seen as a matrix of ``rows`` × ``columns`` (the last dimension is the columns), cut
    into chains of ``group_rows`` rows each, the last one shorter where they do not divide.

    Attributes:
        shape: as stored; the model's parameter has the last two dimensions exchanged where ``transposed`` is set.
        dtype: the element type in the file (raw), or the type that a rebuilt dense tensor should have (packed).
        row_scale, col_scale: the numbers of the raw tensors with the scales, or -1 (raw tensors).
        transposed: the model's parameter is the transpose of this matrix (GPT-2's Conv1D), or a stack of transposes.
        first_chain: the number of its first chain in the file.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    group_rows: int = 0
    row_scale: int = -1
    col_scale: int = -1
    transposed: bool = False
    first_chain: int = 0

    @property
    def packed(self) -> bool:
        """Whether the tensor is a chain, or several, of residual blocks."""
        return self.group_rows > 0

    @property
    def columns(self) -> int:
        """N, the last dimension (1 for a scalar)."""
        return self.shape[-1] if self.shape else 1

    @property
    def rows(self) -> int:
        """M, the product of all dimensions but the last."""
        return prod(self.shape[:-1])

    @property
    def n_chains(self) -> int:
        """How many chains the tensor is cut into; 1 for a raw tensor."""
        return -(-self.rows // self.group_rows) if self.packed else 1

    @property
    def dense_bytes(self) -> int:
        """Bytes of the dense tensor in ``dtype``."""
        return prod(self.shape) * registry.DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file that travels along: inline in the metadata (``data``), or ``offset`` bytes after the head.

    ``stored`` and ``length`` are the bytes before and after decoding; ``digest`` is BLAKE3 of the stored bytes.
    """

    name: str
    length: int
    codec: str = "none"
    data: bytes | None = None
    offset: int = 0
    stored: int = 0
    digest: bytes = b""


@dataclass(frozen=True, slots=True)
class Curve:
    """A measured quality curve: ``points`` are (number of leading blocks loaded, value of the metric).

    ``dense`` is the value of the unpacked model, ``tokens`` and ``window`` say how much text, in tokens.
    """

    metric: str
    text: str
    tokens: int
    window: int
    dense: float
    points: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Volume:
    """An object of its own that holds the blocks from ``first_block`` on, up to those of the next volume.

    Attributes:
        name: what the object is called, in the folder of the first one.
    """

    name: str
    first_block: int


@dataclass(frozen=True, slots=True)
class Metadata:
    """The decoded metadata section. ``volumes`` are those after the first, none for a file of one object."""

    writer: str
    tensors: tuple[Tensor, ...]
    forms: tuple[Form, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)
    attachments: tuple[Attachment, ...] = ()
    curves: tuple[Curve, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    volumes: tuple[Volume, ...] = ()

    @property
    def n_chains(self) -> int:
        """Number of chains in the file: the upper bound of the index's ``chain`` column, exclusive."""
        return self.tensors[-1].first_chain + self.tensors[-1].n_chains if self.tensors else 0


def number_chains(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Give every tensor the number of its first chain: tensors in order, row groups in order."""
    out: list[Tensor] = []
    chain = 0
    for tensor in tensors:
        out.append(replace(tensor, first_chain=chain))
        chain += tensor.n_chains
    return tuple(out)


def encode(meta: Metadata) -> bytes:
    """The metadata section, before compression."""
    tensors = []
    for t in meta.tensors:
        item: dict[str, Any] = {"name": t.name, "shape": list(t.shape), "dtype": t.dtype}
        if t.packed:
            item |= {"group_rows": t.group_rows, "row_scale": t.row_scale, "col_scale": t.col_scale}
            if t.transposed:
                item["transposed"] = True
        tensors.append(item)
    forms = []
    for f in meta.forms:
        item = {"kind": f.kind, "codec": f.codec}
        if f.has_factors:
            item |= {"rank": f.rank, "factors": f.factors}
        forms.append(item)
    attachments = []
    for a in meta.attachments:
        item = {"name": a.name, "length": a.length}
        item |= (
            {"data": a.data}
            if a.data is not None
            else {"codec": a.codec, "offset": a.offset, "stored": a.stored, "digest": a.digest}
        )
        attachments.append(item)
    curves = [
        {
            "metric": c.metric,
            "text": c.text,
            "tokens": c.tokens,
            "window": c.window,
            "dense": c.dense,
            "points": [[n, v] for n, v in c.points],
        }
        for c in meta.curves
    ]
    volumes = [{"name": v.name, "first_block": v.first_block} for v in meta.volumes]
    return strict.pack(
        {
            "writer": meta.writer,
            "tensors": tensors,
            "forms": forms,
            "aliases": dict(meta.aliases),
            "attachments": attachments,
            "curves": curves,
            "extra": dict(meta.extra),
        }
        | ({"volumes": volumes} if volumes else {})
    )

"""What a container says of one block, and of a run of blocks that is read in one go."""

from dataclasses import dataclass

from .metadata import Form, Tensor


@dataclass(frozen=True, slots=True)
class Block:
    """One block of the file.

    Attributes:
        number: its position in the order of the file.
        tensor: the tensor it belongs to; ``first_row`` and ``rows`` say which rows of it, ``level`` which step of
            the chain, from 0.
        offset, stored: its range in the file, bytes; ``length`` its bytes when decoded and resident.
        worth: estimated drop of the loss per byte.
    """

    number: int
    tensor: Tensor
    first_row: int
    rows: int
    level: int
    form: Form
    offset: int
    stored: int
    length: int
    worth: float
    digest: bytes

    def __str__(self) -> str:
        return f"block {self.number} (level {self.level} of {self.tensor.name}, rows from {self.first_row})"


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive blocks that are read in one go: block numbers [first, stop), one range of the file in bytes."""

    first: int
    stop: int
    offset: int
    length: int

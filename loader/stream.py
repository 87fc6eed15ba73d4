"""Reading a run of blocks: ranges in flight at once, bounded in bytes; every block checked; in order."""

from collections.abc import Callable, Iterator
from contextlib import closing

from bsformat import Block, Container, Flow, Reading


def stream_blocks(
    container: Container,
    first: int,
    stop: int,
    *,
    request_bytes: int | None = None,
    requests: int | None = None,
    memory: int | None = None,
    watch: Callable[[Reading], object] | None = None,
) -> Iterator[tuple[Block, bytes | memoryview]]:
    """Blocks [first, stop) with their checked payloads, in the order of the file.

    The requests tile the range of these blocks: not a byte is read twice, and none beyond it. A payload is valid
    until the next one is taken: its memory is used again. How many requests run at once, and how large they are,
    follows what the link gives, unless it is said.

    Args:
        request_bytes: of each request, unless a single block is larger. requests: in flight at once, the one that is
            consumed included.
        memory: bytes of host memory at most, for what is in flight, waits or was decoded; None: that of the container
            (`bsformat.Network.memory`). A block that alone takes more is read alone.
        watch: called with how far it is, after each request and ten times a second while nothing comes.

    Raises:
        SourceError: the bytes could not be read. FormatError: a block is damaged; no block after it was given out.
    """
    if first == stop:
        return
    flow = Flow(
        container,
        [(first, stop)],
        memory=container.memory if memory is None else memory,
        request_bytes=request_bytes,
        requests=requests,
        watch=watch,
    )
    with closing(iter(flow)) as parts:
        for part in parts:
            yield from part.blocks

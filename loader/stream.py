"""Reading a run of blocks: ranges in flight at once, bounded in bytes; every block checked; in order."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from bsformat import Block, Container, Span

#: Bytes of one request, unless a single block is larger.
REQUEST_BYTES = 4 << 20
#: Requests in flight at once, the one being consumed included: with `REQUEST_BYTES` the bound on host memory.
REQUESTS = 4

Checked = list[tuple[Block, bytes | memoryview]]


def stream_blocks(
    container: Container, first: int, stop: int, *, request_bytes: int = REQUEST_BYTES, requests: int = REQUESTS
) -> Iterator[tuple[Block, bytes | memoryview]]:
    """Blocks [first, stop) with their checked payloads, in the order of the file.

    The requests tile the range of these blocks: not a byte is read twice, and none beyond it. A payload is valid
    until the next one is taken. Host memory stays below ``requests`` × ``request_bytes``, or the largest blocks.

    Raises:
        SourceError: the bytes could not be read. FormatError: a block is damaged; no block after it was given out.
    """
    spans = container.spans(first, stop, request_bytes)
    with ThreadPoolExecutor(requests, thread_name_prefix="bstk-read") as pool:
        pending: deque[Future[Checked]] = deque()
        try:
            for span in spans:
                pending.append(pool.submit(_read, container, span))
                if len(pending) == requests:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _read(container: Container, span: Span) -> Checked:
    return list(container.decode_span(span, container.read(span.offset, span.length)))

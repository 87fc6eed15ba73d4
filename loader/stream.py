"""Reading a run of blocks: ranges in flight at once, bounded in bytes; every block checked; in order."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait

from bsformat import Block, Container, Span

#: Bytes of one request, unless a single block is larger.
REQUEST_BYTES = 4 << 20
#: Requests in flight at once, the one being consumed included: with `REQUEST_BYTES` the bound on host memory.
REQUESTS = 4

Checked = list[tuple[Block, bytes | memoryview]]


def stream_blocks(
    container: Container,
    first: int,
    stop: int,
    *,
    request_bytes: int = REQUEST_BYTES,
    requests: int = REQUESTS,
    watch: Callable[[object], object] = lambda reading: None,
) -> Iterator[tuple[Block, bytes | memoryview]]:
    """Blocks [first, stop) with their checked payloads, in the order of the file.

    The requests tile the range of these blocks: not a byte is read twice, and none beyond it. A payload is valid
    until the next one is taken. Host memory stays below ``requests`` × ``request_bytes``, or the largest blocks.

    Args:
        request_bytes: of each request, unless a single block is larger. requests: in flight at once.
        watch: called after each request, and ten times a second while nothing comes; what it raises ends the stream.

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
                    yield from _watched(pending.popleft(), watch)
            while pending:
                yield from _watched(pending.popleft(), watch)
        finally:
            for future in pending:
                future.cancel()


def _read(container: Container, span: Span) -> Checked:
    return list(container.decode_span(span, container.read(span.offset, span.length)))


def _watched(future: Future[Checked], watch: Callable[[object], object]) -> Checked:
    while not wait([future], 0.1).done:
        watch(None)
    watch(None)
    return future.result()

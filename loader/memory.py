"""Giving freed memory back to the operating system."""

import ctypes
from collections.abc import Callable
from functools import cache


def release_pages() -> None:
    """Hand the pages that this process has freed back to the system, where the C library would keep them.

    Blocks are small and lie between other things on the heap: glibc alone gives none of them back, so that a model that
    shrank would leave its process as large as before. Elsewhere this does nothing.
    """
    _malloc_trim()(0)


@cache
def _malloc_trim() -> Callable[[int], object]:
    try:
        trim: Callable[[int], object] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # another C library, another system
        return lambda pad: 0
    return trim

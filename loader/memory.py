"""Giving freed memory back to the operating system, now and from now on."""

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Final

#: Bytes from which on an allocation gets pages of its own once the heap is steady.
OWN_PAGES: Final = 1 << 20
#: The number that glibc has given this setting in malloc.h.
_M_MMAP_THRESHOLD: Final = -3


def release_pages() -> None:
    """Hand the pages that this process has freed back to the system, where the C library would keep them.

    Blocks are small and lie between other things on the heap: glibc alone gives none of them back, so that a model that
    shrank would leave its process as large as before. Elsewhere this does nothing.
    """
    _malloc_trim()(0)


@cache
def steady_heap() -> bool:
    """Have the C library give every allocation from `OWN_PAGES` on pages of its own, which go back when it is freed.

    glibc begins so, but learns from what is freed and soon puts tensors of up to 32 MiB on its heap, where they leave
    holes: generating then holds several times the memory that is in use. This holds for the whole process and for good.
    Fresh pages cost processor time: `tools/bench/heap.py` measures how much.

    Returns:
        Whether the C library was told so; False where it is another one.
    """
    try:
        tell: Callable[[int, int], int] = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library, another system
        return False
    return tell(_M_MMAP_THRESHOLD, OWN_PAGES) == 1


def heap_is_steady() -> bool:
    """Whether `steady_heap` was called in this process."""
    return steady_heap.cache_info().currsize > 0


@cache
def _malloc_trim() -> Callable[[int], object]:
    try:
        trim: Callable[[int], object] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # another C library, another system
        return lambda pad: 0
    return trim

"""Memory that is freed stays with the process while a loop runs, so that the next step does not fetch it page by page again.

glibc hands tensors above 32 MB, and the top of its heap, back to the system as soon as they are freed; every page of the next
tensor is then fetched anew. On a CPU that took a fifth of a training step (docs/performance.md).
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4  # the numbers of malloc.h
NEVER = 2**31 - 1
# Where glibc's own adaptive thresholds end, and its usual number of separate mappings. It stops adapting once it was told.
USUAL = {MMAP_THRESHOLD: 32 << 20, TRIM_THRESHOLD: 64 << 20, MMAP_MAX: 65536}

_depth = 0


def _glibc() -> ctypes.CDLL | None:
    """The C library, where it is glibc."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None


@contextmanager
def kept_pages() -> Iterator[None]:
    """Within: freed memory is not handed back to the system. Afterwards all of it is. Nothing happens without glibc."""
    global _depth
    library = _glibc()
    if library is None:
        yield
        return
    _depth += 1
    if _depth == 1:
        library.mallopt(TRIM_THRESHOLD, NEVER)
        library.mallopt(MMAP_MAX, 0)
    try:
        yield
    finally:
        _depth -= 1
        if _depth == 0:
            for parameter, value in USUAL.items():
                library.mallopt(parameter, value)
            library.malloc_trim(0)

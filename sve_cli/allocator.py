"""Memory that is freed stays with the process while a loop runs, so that the next step does not fetch it page by page again.

glibc hands tensors above 32 MB, and the top of its heap, back to the system as soon as they are freed; every page of the next
tensor is then fetched anew. On a CPU that took a fifth of a training step (docs/performance.md).

The price is memory: holes between tensors, most of them too small for the next one, pile up to as much as what is in use.
`Spare` hands these back where memory counts more than time.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4  # the numbers of malloc.h
NEVER = 2**31 - 1
# Where glibc's own adaptive thresholds end, and its usual number of separate mappings. It stops adapting once it was told.
USUAL = {MMAP_THRESHOLD: 32 << 20, TRIM_THRESHOLD: 64 << 20, MMAP_MAX: 65536}

STATM = Path("/proc/self/statm")

_depth = 0


class _Info(ctypes.Structure):
    """What glibc's `mallinfo2` returns."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ["arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"]
    ]


class Spare:
    """Memory that was freed and is still held, handed back to the system when there is more of it than a share of what is in use.

    Args:
        share: of the memory in use.
        least: bytes below which nothing is handed back.

    Attributes:
        library: None where the memory in use cannot be seen; then nothing happens.
        base: bytes of programs and libraries.
    """

    def __init__(self, share: float = 0.15, least: int = 2**25) -> None:
        self.share, self.least, self.base = share, least, 0
        library = _glibc()
        self.library = library if library is not None and hasattr(library, "mallinfo2") and STATM.exists() else None
        if self.library is not None:
            self.library.mallinfo2.restype = _Info
            self._hand_back()

    def _resident(self) -> int:
        return int(STATM.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def _used(self) -> int:
        assert self.library is not None
        found = self.library.mallinfo2()
        return int(found.uordblks + found.hblkhd)

    def _hand_back(self) -> None:
        assert self.library is not None
        self.library.malloc_trim(0)
        self.base = self._resident() - self._used()

    def limit(self) -> None:
        """Hand back what is too much."""
        if self.library is None:
            return
        used = self._used()
        if self._resident() - self.base - used > max(self.share * used, self.least):
            self._hand_back()


@lru_cache(maxsize=1)
def spare() -> Spare:
    """The process's own."""
    return Spare()


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

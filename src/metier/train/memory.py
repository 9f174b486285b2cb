"""How glibc's allocator treats the large tensors that come and go in every micro-step. Without effect elsewhere."""

import ctypes
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, MMAP_MAX = -1, -2, -3, -4  # mallopt(3)
DEFAULTS = {TRIM_THRESHOLD: 128 * 2**10, TOP_PAD: 128 * 2**10, MMAP_THRESHOLD: 32 * 2**20, MMAP_MAX: 65536}
KEPT = {MMAP_MAX: 0, TRIM_THRESHOLD: 2**31 - 1, TOP_PAD: 64 * 2**20}
RETURNED = {MMAP_THRESHOLD: 2**20, TRIM_THRESHOLD: 16 * 2**20}


@contextmanager
def kept_memory() -> Iterator[None]:
    """Within it, what is freed is kept for the next tensor; afterwards it is given back.

    By default every large tensor is a mapping of its own, and the system fills each with zeros page by page: measured
    with rows of 3,300 tokens at TinyLlama's width, 350 thousand page faults and a tenth of a step's time.
    """
    with _allocator(KEPT):
        yield


@contextmanager
def returned_memory() -> Iterator[None]:
    """Within it, every tensor of a megabyte or more is given back as soon as it is freed.

    For bases whose weights are made whole for each product: kept, the pieces that they leave behind were measured to
    double the process, from 2 GB to 4, within eight micro-steps of different lengths.
    """
    with _allocator(RETURNED):
        yield


@contextmanager
def _allocator(options: Mapping[int, int]) -> Iterator[None]:
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    for option, value in options.items():
        libc.mallopt(option, value)
    try:
        yield
    finally:
        for option, value in DEFAULTS.items():
            libc.mallopt(option, value)
        libc.malloc_trim(0)

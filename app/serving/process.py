"""The process that serves: its memory, its garbage collector, and its end when its parent is gone."""

import ctypes
import gc
import multiprocessing
import os
import signal
import sys
from contextlib import suppress

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from malloc.h
PR_SET_PDEATHSIG = 1  # from linux/prctl.h
# Bytes. Blocks below the first stay with the process: else the pixels of each ordinary image would be asked of the
# system page by page.
LARGE_BLOCK, KEPT = 8 * 2**20, 64 * 2**20


def end_with_parent() -> None:
    """Have Linux end this worker if its parent is killed. Else it would keep the port and the gallery."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid != os.getppid():
        sys.exit("the parent of this worker is gone")  # before the line above took effect


def return_freed_memory() -> None:
    """Have glibc return large blocks to the system as soon as they are free. musl and macOS have no such setting."""
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT)


def collect_garbage_less_often() -> None:
    """Have the garbage collector ignore what start-up made, and run less often on what requests make."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)

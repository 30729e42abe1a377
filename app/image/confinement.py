"""The rights that a decoder process gives up before it sees an image, on Linux.

The kernel limits its memory, time and files. A filter of system calls (seccomp) allows only those that decoding needs:
reading and writing open pipes, memory, time and, for HEIC, threads. Any other call fails with EPERM, so code that a
hostile image brought in cannot open, delete or truncate a file, connect, start a program or look into another process.
"""

import ctypes
import os
import resource
import struct
import sys
from contextlib import suppress
from pathlib import Path

# Twice what a thousand images may take.
MOST_PROCESSOR_SECONDS = 3600

_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 22, 38  # from linux/prctl.h
_SECCOMP_MODE_FILTER = 2  # from linux/seccomp.h, like the next line
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050001, 0x80000000
# Classic BPF: load a word, jump if equal, return (linux/bpf_common.h). A call's number is at 0, its machine at 4.
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_INSTRUCTION = struct.Struct("=HBBI")

# Numbers of the calls by machine: AUDIT_ARCH, calls, calls that start a thread.
# read write close fstat lseek mmap mprotect munmap brk rt_sigaction rt_sigprocmask rt_sigreturn readv writev select
# sched_yield mremap madvise nanosleep setitimer getpid exit uname gettimeofday getrusage sysinfo times sigaltstack
# gettid time futex sched_getaffinity restart_syscall clock_gettime clock_getres clock_nanosleep exit_group newfstatat
# pselect6 poll ppoll set_robust_list getrandom membarrier rseq; clone clone3
_MACHINES: dict[str, tuple[int, tuple[int, ...], tuple[int, ...]]] = {
    "x86_64": (
        0xC000003E,
        (
            *(
                0,
                1,
                3,
                5,
                8,
                9,
                10,
                11,
                12,
                13,
                14,
                15,
                19,
                20,
                23,
                24,
                25,
                28,
                35,
                38,
                39,
                60,
                63,
                96,
                98,
                99,
                100,
                131,
            ),
            *(186, 201, 202, 204, 219, 228, 229, 230, 231, 262, 270, 7, 271, 273, 318, 324, 334),
        ),
        (56, 435),
    ),
    "aarch64": (
        0xC00000B7,
        (
            *(
                63,
                64,
                57,
                80,
                62,
                222,
                226,
                215,
                214,
                134,
                135,
                139,
                65,
                66,
                124,
                216,
                233,
                101,
                103,
                172,
                93,
                160,
                169,
            ),
            *(165, 179, 153, 132, 178, 98, 123, 128, 113, 114, 115, 94, 79, 72, 73, 99, 278, 283, 293),
        ),
        (220, 435),
    ),
}


def confine(mib: int, *, threads: bool) -> bool:
    """Limit this process to `mib` MiB for an image and to what decoding needs. Returns whether system calls were
    restricted too: only on Linux, on the machines of the table above."""
    if sys.platform != "linux":
        return False
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for limit, value in (
        (resource.RLIMIT_AS, held + mib * 2**20),
        (resource.RLIMIT_CPU, MOST_PROCESSOR_SECONDS),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    with suppress(AttributeError):
        libc = ctypes.CDLL(None)
        machine = os.uname().machine
        if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 and machine in _MACHINES:
            code = _filter(*_MACHINES[machine], threads=threads)
            buffer = ctypes.create_string_buffer(code, len(code))
            program = struct.pack("@HP", len(code) // _INSTRUCTION.size, ctypes.addressof(buffer))
            return bool(libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, program, 0, 0) == 0)
    return False


def _filter(machine: int, calls: tuple[int, ...], starting: tuple[int, ...], *, threads: bool) -> bytes:
    allowed = (*calls, *(starting if threads else ()))
    return b"".join(
        _INSTRUCTION.pack(*instruction)
        for instruction in (
            (_LOAD, 0, 0, 4),
            (_EQUAL, 1, 0, machine),
            (_RETURN, 0, 0, _KILL),
            (_LOAD, 0, 0, 0),
            # Jumps count from the next instruction; the last two instructions refuse and allow.
            *((_EQUAL, len(allowed) - at, 0, number) for at, number in enumerate(allowed)),
            (_RETURN, 0, 0, _REFUSE),
            (_RETURN, 0, 0, _ALLOW),
        )
    )

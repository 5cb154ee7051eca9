"""Takes from this process what a parser of strangers' messages does not need: time, memory, files, processes, the network.

Every step is an attempt: where the kernel or the service manager refuses one, the others hold.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct

_NO_NEW_PRIVS, _SET_SECCOMP, _FILTER = 38, 22, 2
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_REFUSE = 0x00050000 | 1  # EPERM
# AUDIT_ARCH, and by it the numbers of: socket, socketpair, connect, bind, listen, accept, accept4, sendto, sendmsg, sendmmsg,
# execve, execveat, fork, vfork, clone, clone3, ptrace, process_vm_readv, process_vm_writev, io_uring_setup, kill, tkill, tgkill.
_CALLS = {
    "x86_64": (
        0xC000003E,
        (41, 53, 42, 49, 50, 43, 288, 44, 46, 307, 59, 322, 57, 58, 56, 435, 101, 310, 311, 425, 62, 200, 234),
    ),
    "aarch64": (
        0xC00000B7,
        (198, 199, 203, 200, 201, 202, 242, 206, 211, 269, 221, 281, 220, 435, 117, 270, 271, 425, 129, 130, 131),
    ),
}


def confine(seconds: int, memory_bytes: int) -> None:
    """Bounds this process for the rest of its life."""
    import resource

    limits = (
        ("RLIMIT_AS", memory_bytes),
        ("RLIMIT_CPU", seconds),
        # Modules for charsets are read as they are needed; nothing is ever written but to stdout.
        ("RLIMIT_NOFILE", 32),
        ("RLIMIT_FSIZE", 0),
        ("RLIMIT_CORE", 0),
        ("RLIMIT_NPROC", 0),
    )
    for name, value in limits:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            resource.setrlimit(getattr(resource, name), (value, value))
    # systemd's filter of @resources refuses setpriority.
    with contextlib.suppress(OSError):
        os.nice(10)
    with contextlib.suppress(Exception):
        libc = ctypes.CDLL(None, use_errno=True)
        libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
        _filter_calls(libc)


def _filter_calls(libc: ctypes.CDLL) -> None:
    """Installs a seccomp filter that refuses sockets, programs and further processes."""
    known = _CALLS.get(platform.machine())
    if known is None:
        return
    arch, calls = known
    steps = [
        # The architecture; another one has other numbers.
        (0x20, 0, 0, 4), (0x15, 1, 0, arch), (0x06, 0, 0, _KILL),
        # The number; beyond 0x40000000 is x32.
        (0x20, 0, 0, 0), (0x35, len(calls) + 1, 0, 0x40000000),
        *((0x15, len(calls) - at, 0, number) for at, number in enumerate(calls)),
        (0x06, 0, 0, _ALLOW), (0x06, 0, 0, _REFUSE),
    ]  # fmt: skip
    code = b"".join(struct.pack("HBBI", *step) for step in steps)
    buffer = ctypes.create_string_buffer(code, len(code))

    # struct sock_fprog: the number of steps, and where they are.
    program = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(buffer)))
    if libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0) == 0:
        libc.prctl(_SET_SECCOMP, _FILTER, program, 0, 0)

"""A filter of system calls, as containers have it: for programs of their own, as it stays in force."""

from __future__ import annotations

import ctypes
import inspect
import os

__all__ = ("REFUSE", "refuse")


def refuse(number: int, error: int) -> None:
    """Have the kernel answer a system call with an errno, in this process from now on (seccomp(2))."""

    class Instruction(ctypes.Structure):
        _fields_ = [("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte), ("k", ctypes.c_uint)]

    class Program(ctypes.Structure):
        _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.POINTER(Instruction))]

    load, jump_if_equal, answer = 0x20, 0x15, 0x06
    failing, allowed = 0x00050000, 0x7FFF0000
    instructions = (Instruction * 4)(
        (load, 0, 0, 0),  # seccomp_data.nr
        (jump_if_equal, 0, 1, number),
        (answer, 0, 0, failing | error),
        (answer, 0, 0, allowed),
    )
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, set_seccomp, mode_filter = 38, 22, 2
    program = ctypes.byref(Program(4, instructions))
    for arguments in ((no_new_privileges, 1, 0, 0, 0), (set_seccomp, mode_filter, program, 0, 0)):
        if libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    assert libc.syscall(number, 0, 0) == -1
    assert ctypes.get_errno() == error


# The same, for a program that is passed as text.
REFUSE = "import ctypes, os\n" + inspect.getsource(refuse)

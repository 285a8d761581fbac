"""The exceptions for the kernel's errnos, in one place, and those for what cannot be copied, used twice, or moved as bytes.

The kernel may report the same error in two ways: a system call returns it, or the event of a request has it as a negative result. So these
functions take an errno of either sign, and return the subclass of OSError that Python has for it.
"""

from __future__ import annotations

import errno
import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import NoReturn, SupportsIndex

__all__ = ("NotCopied", "UsedOnce", "aio_limit", "os_call_error", "os_error", "refuse_objects", "setup_error", "shown")

_FIELD_NAMES = re.compile(":[^:]*:")  # in the format of a buffer


class NotCopied:
    """Base of what owns descriptors, requests or memory. A copy would release them a second time, so there is none: TypeError."""

    __slots__ = ()

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError(f"cannot copy or pickle {type(self).__name__!r} object: it owns open files or requests in flight; make another")


class UsedOnce(NotCopied):
    """Base of what opens or makes one thing when it is awaited or entered. A second thing would take the place of the first, which would
    stay open.
    """

    _used: bool = False

    def _use(self, shown: str) -> None:
        """Note that it is awaited or entered. RuntimeError if it was before, whatever became of that. shown: for the error."""
        if self._used:
            raise RuntimeError(f"this {shown} was awaited or entered before: make another")
        self._used = True


def refuse_objects(buffer: object, layout: str) -> None:
    """Raise TypeError if a buffer of this format (PEP 3118) has Python objects, which are pointers."""
    if "O" in layout and "O" in _FIELD_NAMES.sub("", layout):
        raise TypeError(f"a buffer of bytes or numbers is required, not {type(buffer).__name__!r} of Python objects")


def os_error(code: int, filename: object = None, detail: str = "", filename2: object = None) -> OSError:
    """Return the exception for an errno of either sign: the right subclass of OSError, with ``detail`` after its text.

    filename, filename2: named as `shown` does it; None: the exception has none.
    """
    code = abs(code)
    message = f"{os.strerror(code)}: {detail}" if detail else os.strerror(code)
    return OSError(code, message) if filename is None else OSError(code, message, shown(filename), None, shown(filename2))


def os_call_error(code: int, name: object, filename2: object = None) -> OSError:
    """Return what `os_error` does, for a call of `trio_aio.os`: a descriptor stays a number, as in the errors of `os`."""
    error = os_error(code, name, filename2=filename2)
    if isinstance(name, int):
        error.filename = name
    return error


def shown(name: object) -> object:
    """Return the name of a file as an error has it: text or bytes, as the functions of `os` do it, and ``<fd 3>`` for a descriptor."""
    if isinstance(name, int):
        return f"<fd {name}>"
    return os.fspath(name) if isinstance(name, os.PathLike) else name


def setup_error(code: int) -> OSError:
    """Return the exception for an ``io_setup`` that failed. Its text says what the user can do about it."""
    return os_error(code, detail=_setup_advice(abs(code)))


def _setup_advice(code: int) -> str:
    if code == errno.EAGAIN:
        used, limit = aio_limit("aio-nr"), aio_limit("aio-max-nr")
        raised = max(1 << 20, 2 * limit) if limit is not None else 1 << 20
        return (
            f"io_setup would go over the limit of this host: fs.aio-nr is {_shown(used)}, fs.aio-max-nr is {_shown(limit)}; "
            f"raise it with `sysctl fs.aio-max-nr={raised}` on the host, or ask for fewer events"
        )
    if code == errno.EPERM:
        return "io_setup is forbidden, most likely by a seccomp filter (a container's profile, systemd's SystemCallFilter=)"
    if code == errno.ENOSYS:
        return "io_setup is missing: this kernel has no native AIO (built without CONFIG_AIO, or gVisor)"
    if code == errno.EINVAL:
        return "io_setup takes 1 to 4194304 events"
    return "io_setup"


def aio_limit(name: str) -> int | None:
    """Return the number in `/proc/sys/fs/<name>`, None if it cannot be read. name: "aio-nr" or "aio-max-nr"."""
    try:
        with open(f"/proc/sys/fs/{name}", encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return None


def _shown(number: int | None) -> str:
    return "unknown" if number is None else str(number)

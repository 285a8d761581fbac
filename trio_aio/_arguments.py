"""Checks of arguments, made before a call has any effect: a number that does not fit its C type must not fail half-way."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

from trio_aio.lowlevel import RWF

if TYPE_CHECKING:
    from typing import SupportsIndex

__all__ = ("LARGEST_OFFSET", "NO_FLAGS", "checked_flags", "checked_integer", "checked_mode", "checked_offset", "checked_size")

NO_FLAGS = RWF(0)
LARGEST_OFFSET = (1 << 63) - 1  # off_t


def checked_integer(value: SupportsIndex, name: str) -> int:
    """Return an integer that fits off_t. TypeError, OverflowError."""
    number = _plain(value)
    if not -LARGEST_OFFSET - 1 <= number <= LARGEST_OFFSET:
        raise OverflowError(f"{name} does not fit 64 bits: {number}")
    return number


def checked_offset(value: SupportsIndex) -> int:
    """Return an offset in bytes. ValueError if it is negative, TypeError, OverflowError."""
    return checked_size(value, "offset")


def checked_size(value: SupportsIndex, name: str = "size") -> int:
    """Return a size in bytes. ValueError if it is negative, TypeError, OverflowError."""
    if type(value) is int and 0 <= value <= LARGEST_OFFSET:  # most often
        return value
    return _not_negative(checked_integer(value, name), name)


def checked_flags(value: SupportsIndex) -> int:
    """Return the flags of one read or write (`RWF`). TypeError, OverflowError."""
    if value is NO_FLAGS:
        return 0
    flags = _plain(value)
    if not 0 <= flags < 1 << 31:
        raise OverflowError(f"flags do not fit 31 bits: {flags:#x}")
    return flags


def checked_mode(value: SupportsIndex, name: str = "mode") -> int:
    """Return a mode. ValueError if it is negative, TypeError, OverflowError."""
    mode = _not_negative(_plain(value), name)
    if mode >= 1 << 31:  # `os` takes a C int
        raise OverflowError(f"{name} does not fit 31 bits: {mode:#o}")
    return mode


def _plain(value: SupportsIndex) -> int:
    """Return a plain int. With an IntFlag, each "|" and "&" would make a new flag, and take ten times as long."""
    return int(operator.index(value))


def _not_negative(number: int, name: str) -> int:
    if number < 0:
        raise ValueError(f"negative {name}: {number}")
    return number

"""`install` and `uninstall`: our files in the places of trio's and anyio's own.

A program that calls ``anyio.open_file`` through a library cannot change the library's import. So `install` changes the attribute. A module
that has imported the function before has an attribute of its own: it is found in ``sys.modules``, and replaced where it *is* the original.

Another patch may lie over ours, that of a test for instance. It is not ours to undo. `uninstall` then leaves the attribute, and warns.
Users call these, and ``python -m trio_aio run``.
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
from typing import TYPE_CHECKING, Any

from trio_aio._dropin.places import Place, anyio_places, trio_places

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

__all__ = ("install", "uninstall")

_OWN = __name__.partition(".")[0]
_lock = threading.RLock()
_installed: list[Place] = []


def _renew_lock() -> None:
    global _lock
    _lock = threading.RLock()  # another thread of the parent may have held it


os.register_at_fork(after_in_child=_renew_lock)


def install(*, trio: bool = True, anyio: bool = True, streams: bool = False, whole: bool = False, names: bool = False) -> None:
    """Let ``trio.open_file``, ``anyio.open_file``, ``trio.Path.open`` and ``anyio.Path.open`` open files of this package: `open_file`.

    For programs and test runs, not for libraries: it changes what the whole process uses, also in modules that have imported the functions
    before. `uninstall` undoes it. A second call has no effect; call `uninstall` first to change the options. Any thread may call it.

    - `trio`, `anyio`: which of the two. One that is not installed is left out.
    - `streams`: also ``anyio.streams.file.FileReadStream`` and ``FileWriteStream``.
    - `whole`: also ``read_bytes``, ``write_bytes``, ``read_text`` and ``write_text`` of both ``Path`` classes.
    - `names`: also ``stat``, ``exists``, ``iterdir``, ``glob``, ``unlink`` and the other calls of both, and anyio's temporary files.

    The files count as instances of ``anyio.AsyncFile`` and of trio's wrapper from then on. Files opened before, ``aiofiles``, ``tempfile``
    and Python's own ``open`` do not change.
    """
    with _lock:
        if _installed:
            return
        places: list[Place] = []
        if trio:
            places += _found(trio_places(whole=whole, names=names))
        if anyio:
            places += _found(anyio_places(streams=streams, whole=whole, names=names))
        by_original = {id(place.original): place for place in places if not isinstance(place.owner, type)}
        for module, name, value in _attributes():
            place = by_original.get(id(value))
            if place is not None and not any(known.owner is module and known.name == name for known in places):
                places.append(Place(module, name, value, place.ours))
        for place in places:
            setattr(place.owner, place.name, place.ours)
            _installed.append(place)


def uninstall() -> None:
    """Put back what `install` has replaced. Without it, nothing happens.

    RuntimeWarning for an attribute that something else has replaced meanwhile: it is left as it is. Files that are open stay open.
    """
    with _lock:
        places, foreign = _installed[::-1], []
        public = vars(sys.modules[_OWN]).values()
        _installed.clear()
        for place in places:
            if vars(place.owner).get(place.name) is place.ours:
                setattr(place.owner, place.name, place.original)
            else:
                foreign.append(place.shown)
        # Modules that were imported meanwhile have taken ours. A public class of ours may have come from this package itself, so it stays.
        by_ours = {id(place.ours): place for place in places if not isinstance(place.ours, type) and place.ours not in public}
        for module, name, value in _attributes():
            if id(value) in by_ours:
                setattr(module, name, by_ours[id(value)].original)
    if foreign:
        warnings.warn(f"replaced by something else meanwhile, and left as it is: {', '.join(foreign)}", RuntimeWarning, stacklevel=2)


def _found(places: Iterator[Place]) -> list[Place]:
    try:
        return list(places)
    except ImportError:
        return []


def _attributes() -> Iterator[tuple[ModuleType, str, Any]]:
    """Return the attributes of all modules but our own, without asking a lazy module for what it has not loaded."""
    for module_name, module in list(sys.modules.items()):
        if module_name == _OWN or module_name.startswith(f"{_OWN}."):
            continue
        attributes = getattr(module, "__dict__", None)
        if isinstance(attributes, dict):
            for name, value in list(attributes.items()):
                yield module, name, value

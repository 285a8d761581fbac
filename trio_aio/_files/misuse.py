"""`Misuse`: errors that say what to do, where a file is used as if it were synchronous.

A program may pass a file to ``csv``, ``zipfile`` or ``numpy.load``, or write ``for`` instead of ``async for``. Python would say that an
object does not have this or that method. These say what to use instead.

There is no ``__iter__``: libraries ask with ``isinstance(file, Iterable)`` whether what they got is synchronous, and send it by
``async for`` only if it is not (httpx does so). A loop over an object without it asks for the item 0, and ``__getitem__`` explains.
"""

from __future__ import annotations

from typing import Any, NoReturn

__all__ = ("Misuse",)

_ADVICE = {
    "close": "use `await file.aclose()`, or `async with`",
    "detach": "no Python file is underneath; use `fileno()`, or `blocking()` in a thread",
    "raw": "no Python file is underneath; use `fileno()`, or `blocking()` in a thread",
    "reconfigure": "open the file again with the arguments wanted, as in `open_aio(file.name, newline=...)`",
    "getvalue": "use `await file.read()`",
    "getbuffer": "use `await file.read()`",
}
_BLOCKING = "pass `file.blocking()` to code that wants a synchronous file, and call that code in a thread (`to_thread.run_sync`)"


class Misuse:
    """Base class of files: calls of a synchronous file raise an error that names the right call."""

    __slots__ = ()

    def _refuse(self, what: str, instead: str = "") -> NoReturn:
        raise TypeError(f"{type(self).__name__!r} object {what}: {instead}{_BLOCKING}")

    def __enter__(self) -> NoReturn:
        self._refuse("cannot be used in `with`", "use `async with`, or ")

    def __exit__(self, *error: object) -> NoReturn:
        self._refuse("cannot be used in `with`", "use `async with`, or ")

    def __getitem__(self, index: Any) -> NoReturn:
        self._refuse("cannot be iterated with `for` or indexed", "use `async for`, or ")

    def __next__(self) -> NoReturn:
        self._refuse("cannot be iterated with `for` or `next`", "use `async for`, or ")

    def __len__(self) -> NoReturn:
        self._refuse("has no len()")

    def __bool__(self) -> bool:
        return True


class _Missing:
    """An attribute that does not exist. Its AttributeError says what to use instead."""

    def __init__(self, name: str, advice: str) -> None:
        self._name: str = name
        self._advice: str = advice

    def __get__(self, instance: object, owner: type) -> NoReturn:
        text = f"{owner.__name__!r} object has no attribute {self._name!r}: {self._advice}"
        raise AttributeError(text, name=self._name, obj=owner if instance is None else instance)


# Not one ``__getattr__``: with it on the class, Python looks up every attribute of a file the slow way.
for _name, _advice in _ADVICE.items():
    setattr(Misuse, _name, _Missing(_name, _advice))

"""Files that are used as if they were synchronous: the error names the right call."""

from __future__ import annotations

import contextlib
import copy
import csv
from collections.abc import AsyncIterable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from trio_aio import open_aio

from ..support.files import make_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [pytest.mark.anyio, pytest.mark.backends("trio", "asyncio")]


def enter(file: Any) -> None:
    with file:
        pass


def loop(file: Any) -> None:
    for _ in file:
        pass


MISUSES: dict[str, Callable[[Any], object]] = {
    "with": enter,
    "ExitStack": lambda file: contextlib.ExitStack().enter_context(file),
    "for": loop,
    "list": list,
    "next": next,
    "next of iter": lambda file: next(iter(file)),
    "len": len,
    "item": lambda file: file[0],
    "in": lambda file: b"x" in file,
    "bytes": bytes,
    "csv": lambda file: next(csv.reader(file)),
}


@pytest.mark.parametrize("misuse", MISUSES)
@pytest.mark.parametrize("mode", ["rb", "r"])
async def test_synchronous_use_is_refused_with_advice(tmp_path: Path, mode: str, misuse: str) -> None:
    path, _ = make_file(tmp_path)
    async with open_aio(path, mode) as file:
        with pytest.raises(TypeError, match=r"blocking\(\)"):
            MISUSES[misuse](file)


@pytest.mark.parametrize("mode", ["rb", "r"])
async def test_file_is_true_and_not_taken_for_an_iterable(tmp_path: Path, mode: str) -> None:
    path, _ = make_file(tmp_path)
    async with open_aio(path, mode) as file:
        assert file
        assert isinstance(file, AsyncIterable)
        assert not isinstance(file, (Iterable, Iterator))


@pytest.mark.parametrize("mode", ["rb", "r"])
async def test_missing_attribute_says_what_to_use(tmp_path: Path, mode: str) -> None:
    path, _ = make_file(tmp_path)
    async with open_aio(path, mode) as file:
        for name, advice in (("close", "aclose"), ("detach", "blocking"), ("raw", "blocking"), ("reconfigure", "open_aio")):
            assert not hasattr(file, name)
            with pytest.raises(AttributeError, match=advice):
                getattr(file, name)
        with pytest.raises(AttributeError, match=r"no attribute 'nonsense'$"):
            file.nonsense  # type: ignore[union-attr]  # noqa: B018
        with pytest.raises(TypeError, match="copy"):
            copy.copy(file)

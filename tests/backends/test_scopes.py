"""anyio's cancel scopes on asyncio: with the private names of its present version, and without."""

from __future__ import annotations

import asyncio
import importlib
import sys
import types
from asyncio import CancelledError
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import pytest

from trio_aio import open_aio
from trio_aio._backends import current_backend
from trio_aio._backends import scopes as scopes_module
from trio_aio._backends.scopes import Scopes, find_scopes, sent_by_scope
from trio_aio.testing import FaultyContext

from ..support.files import make_file
from ..support.programs import check
from ..support.tasks import until_blocked

if TYPE_CHECKING:
    from pathlib import Path

ANYIO = importlib.import_module("anyio._backends._asyncio")
pytestmark = [pytest.mark.anyio, pytest.mark.backends("asyncio", "asyncio+uvloop")]


def test_installed_anyio_has_the_names_that_are_looked_at() -> None:
    scopes = find_scopes()
    assert scopes is not None
    assert scopes.tasks is ANYIO._task_states.data


@pytest.mark.parametrize("missing", ["CancelScope", "TaskState", "_task_states"])
def test_anyio_without_a_name_is_asked_publicly(missing: str) -> None:
    names = {name: getattr(ANYIO, name) for name in ("CancelScope", "TaskState", "_task_states") if name != missing}
    assert Scopes(types.SimpleNamespace(**names)).tasks is None


@pytest.mark.parametrize("attribute", ["_cancel_called", "_shield", "_parent_scope"])
def test_scope_without_an_attribute_is_asked_publicly(attribute: str) -> None:
    class CancelScope:
        def __init__(self) -> None:
            for name in {"_cancel_called", "_shield", "_parent_scope"} - {attribute}:
                setattr(self, name, None)

    module = types.SimpleNamespace(CancelScope=CancelScope, TaskState=ANYIO.TaskState, _task_states=ANYIO._task_states)
    assert Scopes(module).tasks is None


def test_record_that_is_no_dictionary_is_not_used() -> None:
    module = types.SimpleNamespace(
        CancelScope=ANYIO.CancelScope, TaskState=ANYIO.TaskState, _task_states=types.SimpleNamespace(data=[("task", "state")])
    )
    assert Scopes(module).tasks is None


@pytest.fixture(params=["private names", "public functions"])
def _names(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the names of this anyio, and as with a version that has none of them."""
    if request.param == "public functions":
        monkeypatch.setattr(scopes_module, "_found", Scopes(types.SimpleNamespace()))


@pytest.mark.usefixtures("_names")
async def test_cancelled_scope_stops_a_call_before_it_starts(disk: Path) -> None:
    path, data = make_file(disk)
    async with open_aio(path, "r+b") as file, open_aio(path, "r+b", direct=True) as direct:
        for opened in (file, direct):
            with anyio.CancelScope() as outer, anyio.CancelScope():
                outer.cancel()
                await opened.pwrite(b"x" * 4096, 0)
            assert outer.cancelled_caught
            with anyio.CancelScope() as outer, anyio.CancelScope(shield=True):
                outer.cancel()
                assert await opened.pread(4096, 0) == data[:4096]


@pytest.mark.usefixtures("_names")
async def test_call_in_flight_keeps_its_result(disk: Path) -> None:
    path, data = make_file(disk)
    got = []

    async def read() -> None:
        got.append(await file.pread(4096, 0))
        await anyio.lowlevel.checkpoint()
        got.append(b"not cancelled")

    async with FaultyContext() as context, open_aio(path, direct=True, context=context) as file:
        await file.pread(4096, 0)  # now its memory is there
        hang = context.hang(operation="read")
        async with anyio.create_task_group() as group:
            group.start_soon(read)
            await until_blocked()
            group.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await until_blocked()
                hang.release()
    assert got == [data[:4096]]


@pytest.mark.usefixtures("_names")
async def test_asyncios_own_cancellation_is_raised(disk: Path) -> None:
    path, _ = make_file(disk)
    async with open_aio(path, direct=True) as file:
        task = asyncio.ensure_future(file.pread(4096, 0))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(CancelledError):
            await task


async def test_cancellation_of_a_scope_is_told_from_asyncios_own() -> None:
    errors: list[CancelledError] = []

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        except CancelledError as error:
            errors.append(error)
            raise

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel("with a reason")
    task = asyncio.ensure_future(wait())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    task = asyncio.ensure_future(wait())
    await asyncio.sleep(0)
    task.cancel("with a message")
    await asyncio.gather(task, return_exceptions=True)
    assert [sent_by_scope(error) for error in errors] == [True, False, False]
    without_its_function = Scopes(types.SimpleNamespace())
    assert [without_its_function.sent(error) for error in errors] == [True, False, False]


async def test_shield_holds_against_a_scope() -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        with current_backend().shielded():
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            reached = True
    assert reached


def test_program_without_anyio_does_not_load_its_backend(disk: Path) -> None:
    path, _ = make_file(disk)
    program = """
import asyncio, os, sys
from trio_aio import open_aio

async def main():
    async with open_aio(sys.argv[1], direct=True) as file, open_aio(sys.argv[1], opener=os.open) as other:
        await file.pread(4096, 0)
        task = asyncio.ensure_future(file.pread(4096, 0))
        await asyncio.sleep(0)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            pass
        await other.pread(1, 0)

asyncio.run(main())
assert "anyio._backends._asyncio" not in sys.modules
"""
    check([sys.executable, "-c", program, str(path)])

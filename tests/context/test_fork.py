"""fork: the parent loses nothing, the child may not use what is the parent's, and can have its own.

Each scenario is a program of its own, since a process with threads (pytest's) should not fork.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import pytest

from ..support.files import BLOCK, make_file
from ..support.programs import run as run_program

if TYPE_CHECKING:
    from pathlib import Path

FORKS = """
import gc
warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads

def in_child(function):
    pid = os.fork()
    if not pid:
        try:
            function()
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return pid

def check(pid):
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""


def run(program: str, path: Path) -> None:
    run_program(FORKS + textwrap.dedent(program), path)


def test_fork_loses_no_request_and_calls_in_the_child_are_refused(disk: Path) -> None:
    path, _ = make_file(disk)
    run(
        """
        async def main():
            async with open_aio(path, direct=True) as file, open_aio(path) as buffered:
                context = file.context
                while not context.statistics().submitted_kernel:
                    await file.pread(BLOCK, 0)

                def child():
                    for coroutine in (file.pread(BLOCK, 0), buffered.pread(BLOCK, 0), context.fsync(0), file.aclose(), context.aclose()):
                        try:
                            coroutine.send(None)
                        except RuntimeError as error:
                            assert "parent process" in str(error), error
                        else:
                            raise AssertionError("it was not refused")
                    for ask in (context.statistics, lambda: context.engine):
                        try:
                            ask()
                        except RuntimeError as error:
                            assert "parent process" in str(error), error
                        else:
                            raise AssertionError("it was not refused")

                for round in range(20):
                    results = {}
                    async def read(i):
                        results[i] = await file.pread(BLOCK, i * BLOCK)
                    reader, writer = os.pipe()
                    async with trio.open_nursery() as nursery:
                        async def watch():
                            ready = await context.poll(reader, select.POLLIN)
                            assert ready == select.POLLIN, ready
                        nursery.start_soon(watch)
                        for i in range(64):
                            nursery.start_soon(read, i)
                        await trio.lowlevel.checkpoint()
                        pid = in_child(child)
                        os.write(writer, b"x")
                    check(pid)
                    os.close(reader), os.close(writer)
                    assert results == {i: data[i * BLOCK:][:BLOCK] for i in range(64)}
        trio.run(main)
        """,
        path,
    )


def test_child_of_fork_can_run_its_own_loop(disk: Path) -> None:
    path, _ = make_file(disk)
    run(
        """
        async def main():
            async with open_aio(path, direct=True) as file:
                while not file.context.statistics().submitted_kernel:
                    assert await file.pread(BLOCK, BLOCK) == data[BLOCK:2 * BLOCK]
            async with open_aio(path) as file:
                assert await file.read() == data

        trio.run(main)  # leaves a spare kernel context, which is not the child's
        check(in_child(lambda: trio.run(main)))
        trio.run(main)
        """,
        path,
    )


def test_child_forked_inside_a_run_can_start_another_in_a_thread(disk: Path) -> None:
    path, _ = make_file(disk)
    run(
        """
        import threading

        async def use():
            async with open_aio(path) as file:
                assert await file.read() == data

        async def main():
            async with open_aio(path) as file:
                await file.pread(10, 0)

                def child():
                    failed = []
                    def run():
                        try:
                            trio.run(use)
                        except BaseException as error:
                            failed.append(error)
                    thread = threading.Thread(target=run)
                    thread.start()
                    thread.join()
                    assert not failed, failed

                check(in_child(child))
                assert await file.pread(10, 0) == data[:10]
        trio.run(main)
        """,
        path,
    )


@pytest.mark.parametrize("closed", [False, True])
def test_garbage_collection_of_parent_objects_in_the_child_has_no_effect(disk: Path, closed: bool) -> None:
    path, _ = make_file(disk)
    run(
        f"""
        async def main():
            kept = [await open_aio(path), await open_aio(path, direct=True)]
            while not kept[1].context.statistics().submitted_kernel:
                await kept[1].pread(BLOCK, 0)
            if {closed}:
                for file in kept:
                    await file.aclose()

            def child():
                kept.clear()
                gc.collect()

            check(in_child(child))
            if not {closed}:
                assert await kept[0].pread(BLOCK, 0) == await kept[1].pread(BLOCK, 0) == data[:BLOCK]
                for file in kept:
                    await file.aclose()
        trio.run(main)
        """,
        path,
    )


POLLS = """
from trio_aio._context import polling
from trio_aio._lanes.threads import living
reader, writer = os.pipe()

def wait():
    os.close(writer)
    os.read(reader, 1)  # until the parent has closed the other end

poll_blocking = polling._poll_blocking
children = []

def poll_beside_child(*arguments):
    children.append(in_child(wait))
    poll_blocking(*arguments)

polling._poll_blocking = poll_beside_child
"""


def test_child_that_lives_on_does_not_hold_up_a_poll_by_a_thread(disk: Path) -> None:
    path, _ = make_file(disk)
    run(
        POLLS
        + textwrap.dedent("""
        async def main():
            with open(path, "rb") as plain:
                async with AIOContext(engine="workers") as context:
                    with trio.fail_after(30):
                        assert await context.poll(plain.fileno(), select.POLLIN) == select.POLLIN

        trio.run(main)
        os.close(writer)
        check(*children)
        """),
        path,
    )


def test_child_that_lives_on_does_not_keep_the_thread_of_a_cancelled_poll(disk: Path) -> None:
    path, _ = make_file(disk)
    run(
        POLLS
        + textwrap.dedent("""
        async def main():
            from trio_aio._backends import current_backend
            ends = os.pipe()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(polling._poll_by_thread, current_backend(), set(), ends[0], select.POLLIN)
                while not children:
                    await trio.lowlevel.checkpoint()
                thread, = living
                nursery.cancel_scope.cancel()
            assert thread._running.acquire(timeout=30)

        trio.run(main)
        os.close(writer)
        check(*children)
        """),
        path,
    )


def test_first_fileno_in_the_child_is_refused_and_leaves_the_parents_position(disk: Path) -> None:
    path, _ = make_file(disk)
    run(
        """
        async def main():
            async with open_aio(path) as file, open_aio(path, "r", encoding="latin-1") as text:
                shared = await open_aio(path)
                number = shared.fileno()
                await file.read(100)
                await text.read(100)

                def child():
                    for each in (file, text):
                        try:
                            each.fileno()
                        except RuntimeError as error:
                            assert "parent process" in str(error), error
                        else:
                            raise AssertionError("it was not refused")
                    assert shared.fileno() == number

                check(in_child(child))
                assert os.lseek(file._descriptor.fd, 0, os.SEEK_CUR) == 0
                assert await file.read(100) == data[100:200]
                await shared.aclose()
        trio.run(main)
        """,
        path,
    )


def test_child_that_drops_memory_for_direct_reads_keeps_its_own(disk: Path) -> None:
    path, _ = make_file(disk, 1024 * BLOCK)
    run(
        """
        import mmap

        async def main(close):
            context = AIOContext()
            await context.__aenter__()
            file = await open_aio(path, "r+b", direct=True, context=context)
            chunks, writer = file.chunks(1 << 20, depth=4), file.writer(size=1 << 20)
            await writer.__aenter__()
            await writer.write(b"x")
            await chunks.__anext__()
            while close and context._core.engine.buffers.kept < 3:
                await trio.sleep(0)
            kept = [context, file, chunks, writer]
            if close:
                await context.aclose()

            def child():
                own = [mmap.mmap(-1, 8 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) for _ in range(24)]
                for memory in own:
                    memory[0] = 1
                kept.clear()
                nonlocal context, file, chunks, writer
                context = file = chunks = writer = None
                gc.collect()
                assert sum(memory[0] for memory in own) == 24

            check(in_child(child))
            if not close:
                await context.aclose()

        warnings.simplefilter("ignore", ResourceWarning)
        for close in (True, False):
            trio.run(main, close)
        """,
        path,
    )

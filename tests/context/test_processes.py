"""Processes that are killed, forked, interrupted and full of threads: what was acknowledged is there, and nothing hangs."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

from ..support import programs
from ..support.files import make_file
from ..support.programs import run

if TYPE_CHECKING:
    from pathlib import Path

ROUNDS = int(os.environ.get("TRIO_AIO_ROUNDS", "1"))  # so many times more repetitions


# ---- children


@pytest.mark.parametrize("method", ["fork", "spawn", pytest.param("forkserver", marks=pytest.mark.slow)])
def test_multiprocessing_works_with_requests_in_flight(disk: Path, tmp_path: Path, method: str) -> None:
    path, _ = make_file(disk)
    program = tmp_path / "program.py"
    program.write_text(
        programs.PROLOGUE
        + f"""
import multiprocessing

async def read(results):
    async with open_aio(path, direct=True) as file, open_aio(path) as buffered:
        async def one(i):
            results[i] = await file.pread(BLOCK, i * BLOCK), await buffered.pread(BLOCK, i * BLOCK)
        async with trio.open_nursery() as nursery:
            for i in range(64):
                nursery.start_soon(one, i)

def check(results):
    assert results == {{i: (data[i * BLOCK:][:BLOCK],) * 2 for i in range(64)}}

def child():
    results = {{}}
    # A child of fork finds itself inside the parent's run, in this thread.
    thread = threading.Thread(target=trio.run, args=(read, results))
    thread.start()
    thread.join()
    check(results)

async def main():
    context = multiprocessing.get_context({method!r})
    for round in range({2 if method == "fork" else 1}):
        results = {{}}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, results)
            reader, writer = os.pipe()
            nursery.start_soon(current_context().poll, reader, select.POLLIN)
            for _ in range(3):
                await trio.lowlevel.checkpoint()
            children = [context.Process(target=child) for _ in range(2)]
            for each in children:
                each.start()
            for each in children:
                await trio.to_thread.run_sync(each.join)
                assert each.exitcode == 0, each.exitcode
                each.close()
            os.write(writer, b"x")
        os.close(reader), os.close(writer)
        check(results)

if __name__ == "__main__":
    warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads
    trio.run(main)
"""
    )
    programs.check([sys.executable, "-X", "dev", str(program), str(path)])


def test_child_program_inherits_no_descriptor(disk: Path) -> None:
    path, _ = make_file(disk)
    run(
        """
        import subprocess
        async def main():
            async with open_aio(path, direct=True) as file, open_aio(path, "r+b") as buffered, AIOContext(engine="aio"):
                results = {}
                async def read(i):
                    results[i] = await file.pread(BLOCK, i * BLOCK)
                async with trio.open_nursery() as nursery:
                    for i in range(64):
                        nursery.start_soon(read, i)
                    await trio.lowlevel.checkpoint()
                    listing = [sys.executable, "-c", "import os; print(sorted(os.listdir('/proc/self/fd'), key=int))"]
                    for close_fds in (True, False):
                        done = subprocess.run(listing, capture_output=True, text=True, close_fds=close_fds)
                        assert done.stdout == "['0', '1', '2', '3']\\n", done.stdout  # 3 is that of the listing
                assert results == {i: data[i * BLOCK:][:BLOCK] for i in range(64)}
        trio.run(main)
        """,
        path,
    )


# ---- signals


SIGNALS = """
import gc, random

async def work(counts):
    # Blocks are written whole, from the beginning of the file on: any that is mixed was torn.
    async with open_aio(path, "r+b") as file, open_aio(path, "r+b", direct=True) as direct:
        async def churn(which, task):
            for k in range(30):
                at = (task * 8 + k % 8) * BLOCK
                await which.pwrite(bytes([random.randrange(256)]) * BLOCK, at)
                block = await which.pread(BLOCK, at)
                assert len(block) == BLOCK and len(set(block)) == 1
                if k % 10 == 0:
                    await which.fdatasync()
                    await which.read_ranges([(at, BLOCK), (at + BLOCK, 10)])
        async with trio.open_nursery() as nursery:
            for task in range(4):
                nursery.start_soon(churn, file, task)
                nursery.start_soon(churn, direct, task + 4)
    counts.append(None)

def check_file():
    with open(path, "rb") as plain:
        now = plain.read()
    assert len(now) == len(data)
    for at in range(0, len(now), BLOCK):
        block = now[at : at + BLOCK]
        assert len(set(block)) == 1 or block == data[at : at + BLOCK], "a block is torn"

def open_names():
    return {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")}
"""


def test_keyboard_interrupt_at_any_moment_neither_hangs_nor_tears_a_write(disk: Path) -> None:
    path, _ = make_file(disk)
    run(
        SIGNALS
        + f"""
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
trio.run(work, [])  # how long it takes, and what stays open (a spare kernel context)

def timed_run(done):
    started = time.perf_counter()
    trio.run(work, done)
    return time.perf_counter() - started

duration = timed_run([])

def leaves(error):
    return [leaf for each in error.exceptions for leaf in leaves(each)] if hasattr(error, "exceptions") else [error]

interrupted = rounds = 0
while rounds < {50 * ROUNDS} or interrupted <= {10 * ROUNDS}:
    rounds += 1
    done = []
    try:
        signal.setitimer(signal.ITIMER_REAL, 1e-6 + random.random() * duration)
        try:
            duration = timed_run(done)  # how busy the machine is now decides where the next interrupt falls
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except BaseException as error:
        kinds = {{type(leaf) for leaf in leaves(error)}}
        assert kinds == {{KeyboardInterrupt}}, kinds
        interrupted += 1
        vars(trio._core._run.GLOBAL_RUN_CONTEXT).clear()  # an interrupt in the first lines of trio.run leaves its run behind
    check_file()
gc.collect()
assert path not in open_names()
""",
        path,
        # Python complains of an interrupt in a finalizer, or between a coroutine's making and its await; trio of one while it ends.
        harmless=r"(?s).+",
    )


def test_signal_handlers_run_while_requests_are_in_flight(disk: Path) -> None:
    path, _ = make_file(disk)
    run(
        SIGNALS
        + """
ticks = 0
def tick(*_):
    global ticks
    ticks += 1
signal.signal(signal.SIGALRM, tick)

async def work_under_signals(done):
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    await work(done)
    signal.setitimer(signal.ITIMER_REAL, 0)

done = []
while ticks < 200 or len(done) < 5:
    trio.run(work_under_signals, done)
    check_file()
""",
        path,
    )


# ---- threads


def test_many_runs_in_many_threads_are_complete(disk: Path) -> None:
    path, _ = make_file(disk)
    assert (
        run(
            f"""
            async def main():
                async with open_aio(path) as file, open_aio(path, direct=True) as direct, trio.open_nursery() as nursery:
                    async def read(i):
                        at = i % 64 * BLOCK
                        assert await file.pread(BLOCK, at) == await direct.pread(BLOCK, at) == data[at:at + BLOCK]
                    for i in range(32):
                        nursery.start_soon(read, i)

            failures = []
            def runs(barrier):
                try:
                    barrier.wait()
                    for _ in range({10 * ROUNDS}):
                        trio.run(main)
                except BaseException as error:
                    failures.append(error)

            before = len(os.listdir("/proc/self/fd"))
            barrier = threading.Barrier(16)
            threads = [threading.Thread(target=runs, args=(barrier,)) for _ in range(16)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            if failures:
                raise failures[0]
            from trio_aio._lanes.threads import living
            for thread in [*living]:
                if thread.name.startswith("trio_aio"):
                    thread.join()
            with open("/proc/self/maps") as maps:
                contexts = maps.read().count("/[aio]")
            print(contexts, len(os.listdir("/proc/self/fd")) - before)
            """,
            path,
        )
        == "1 0\n"
    )


def test_reaper_of_parent_ends_quietly_in_a_child_that_leaves_its_loop(disk: Path) -> None:
    """That loop's epoll is the parent's too, so the child must not continue with it, and its own exception must leave it."""
    path, _ = make_file(disk)
    run(
        """
        async def main():
            warnings.simplefilter("ignore")
            async with open_aio(path) as file:
                context = file.context
                child = os.fork()
                if child == 0:
                    os._exit(7 if context._core.served() and context._core.reap() else 1)
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
                assert await file.pread(10, 0) == data[:10]
        trio.run(main)
        """,
        path,
    )

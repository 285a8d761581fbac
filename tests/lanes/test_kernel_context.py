"""The kernel context that one engine leaves to the next."""

from __future__ import annotations

import subprocess
import sys
import textwrap

from trio_aio._lanes import kernel_context as _kernel_context

from ..support.engine_loop import loop
from ..support.programs import run


def test_drained_kernel_context_serves_the_next_engine() -> None:
    used = set()
    for _ in range(5):
        with loop() as made:
            assert made.engine.has_kernel_lane()
            assert made.engine.kernel is not None
            used.add(made.engine.kernel.context.id)
    assert len(used) == 1


def test_larger_kernel_context_replaces_the_spare() -> None:
    room = 1000 + max((spare.nr_events for spare in _kernel_context._spares), default=0)  # of a test before: perhaps a large one
    small, large = _kernel_context.acquire(4), _kernel_context.acquire(room)
    _kernel_context.release(small)
    _kernel_context.release(large)
    acquired = _kernel_context.acquire(room - 500)
    _kernel_context.release(acquired)
    assert acquired is large


def test_memory_error_before_any_line_leaves_the_next_calls_working() -> None:
    run(
        """
        from tests.support.torn import error_before_line
        from trio_aio._lanes.kernel_context import acquire, release
        number, struck = 1, True
        while struck:
            with error_before_line(number) as fault:
                try:
                    release(acquire(4))
                    release(acquire(5000))
                except MemoryError:
                    pass
            release(acquire(4))
            struck, number = fault.where is not None, number + 1
        assert number > 10
        """,
        __file__,
    )  # in a process of its own: what a torn call had made stays until its end


def test_smaller_spare_is_not_used_nor_inherited_by_a_child() -> None:
    program = """
    import os
    from trio_aio._lanes import kernel_context as contexts
    spare = contexts.acquire(4)
    contexts.release(spare)
    pid = os.fork()
    if not pid:
        os._exit(len(contexts._spares))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert contexts.acquire(4) is spare
    contexts.release(spare)
    larger = contexts.acquire(1000)
    assert larger is not spare and larger.nr_events == 1000
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")

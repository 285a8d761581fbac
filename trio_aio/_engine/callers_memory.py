"""Callers' memory of which it is not known whether it belongs to a mapped file: a worker finds out, for later calls.

Since Linux 6.11 the kernel answers at once (`_memory.exports`), and no question is left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trio_aio._engine.mending import mend
from trio_aio._lanes.workers import Inspection

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trio_aio._engine.host import Host

__all__ = ("inspect",)


def inspect(engine: Host, exports: Iterable[Any]) -> None:
    """Have a worker find out what is not known of callers' memory. This call treats it as a file's, and waits for nothing.

    The worker does not keep the memory: the caller may close a mapping before it has looked.
    """
    for export in exports:
        question = export.question if export.mapped else None
        if question is None or not question.take():
            continue

        inspection = Inspection(question.address, question.length, question.answer)
        try:
            engine.outstanding, inspection.counted = engine.outstanding + 1, True
            engine.workers.accept(inspection)
        except BaseException as error:
            mend(engine, error, inspection)
            raise

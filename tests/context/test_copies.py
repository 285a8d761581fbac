"""What owns descriptors, requests or memory cannot be copied; values can."""

from __future__ import annotations

import copy
import errno
import gc
import os
import pickle
from typing import TYPE_CHECKING, Any

import pytest

from trio_aio import AIOContext, FileReadStream, FileWriteStream, current_context, open_aio
from trio_aio.lowlevel import IOCB
from trio_aio.testing import FaultyContext

from ..support.files import make_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

COPIES = pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])


@COPIES
@pytest.mark.anyio
async def test_copy_of_an_owner_raises(disk: Path, copied: Callable[[Any], Any]) -> None:
    path, data = make_file(disk)
    opener = open_aio(path)
    async with (
        FaultyContext() as context,
        open_aio(path, "r+b", context=context) as file,
        open_aio(path, "r", encoding="latin-1") as text,
        file.chunks(4096, depth=2) as chunks,
        file.writer(len(data)) as writer,
        open_aio(path, direct=True) as direct,
    ):
        assert await chunks.__anext__() == data[:4096]
        await writer.write(b"x")
        with path.open("rb") as plain:
            owners = [
                *(context, AIOContext(), current_context(), file, text, chunks, writer, direct, opener),
                *(FileReadStream(file), FileWriteStream(file), FileReadStream(plain)),
                *(IOCB.fsync(0), context.fail(errno.EIO, file="another")),
            ]
            for owner in owners:
                with pytest.raises(TypeError, match=f"cannot copy or pickle {type(owner).__name__!r} object"):
                    copied(owner)
            del owner, owners
        gc.collect()
        assert await chunks.__anext__() == data[4096:8192]
        assert await file.pread(10, 0) == data[:10]
        assert await text.read(10) == data[:10].decode("latin-1")
    await (await opener).aclose()
    assert os.stat(path).st_size == len(data) + 1


@COPIES
@pytest.mark.anyio
async def test_copy_of_a_value_is_equal(disk: Path, copied: Callable[[Any], Any]) -> None:
    path, _ = make_file(disk)
    async with open_aio(path) as file:
        for value in (file.context.statistics(), file.alignment):
            made = copied(value)
            assert (pickle.loads(made) if isinstance(made, bytes) else made) == value

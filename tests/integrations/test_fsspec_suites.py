"""fsspec's abstract suites, on our class."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
from fsspec.implementations.local import LocalFileSystem, make_path_posix
from fsspec.tests import abstract

from trio_aio.integrations.fsspec import AioFileSystem

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.usefixtures("fsspec_loop"), pytest.mark.slow]


class Fixtures(abstract.AbstractFixtures):  # type: ignore[misc]
    """Their fixtures, with our class in the place of the remote filesystem."""

    @pytest.fixture
    def fs(self, fsspec_loop: object) -> AioFileSystem:
        return AioFileSystem(auto_mkdir=True)

    @pytest.fixture
    def local_fs(self) -> Any:
        return LocalFileSystem(auto_mkdir=True)

    @pytest.fixture
    def fs_path(self, tmpdir: Path) -> str:
        return str(tmpdir)

    @pytest.fixture
    def fs_sanitize_path(self) -> Any:
        return make_path_posix

    @pytest.fixture
    def fs_join(self) -> Any:
        return os.path.join


class TestCopy(abstract.AbstractCopyTests, Fixtures):  # type: ignore[misc]
    pass


class TestGet(abstract.AbstractGetTests, Fixtures):  # type: ignore[misc]
    pass


class TestPut(abstract.AbstractPutTests, Fixtures):  # type: ignore[misc]
    pass


class TestPipe(abstract.AbstractPipeTests, Fixtures):  # type: ignore[misc]
    pass


class TestOpen(abstract.AbstractOpenTests, Fixtures):  # type: ignore[misc]
    pass

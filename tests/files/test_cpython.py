"""CPython's own tests of files, test.test_fileio and test.test_io, on ours."""

from __future__ import annotations

import importlib
import io
import unittest
from typing import TYPE_CHECKING, Any

import pytest

from ..support.synchronous import FileIO, TextOverBytesIO, open_synchronously, running_portal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ..support.synchronous import Portal


def _module(*names: str) -> Any:
    for name in names:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    pytest.skip(f"this Python has no {names[0]}: its distributor leaves the tests out", allow_module_level=True)


fileio = _module("test.test_fileio")
general = _module("test.test_io.test_general", "test.test_io")
textio = _module("test.test_io.test_textio", "test.test_io")

SKIPPED = {
    "ours are for regular files and block devices; pipes, terminals and sockets are refused": (
        "test_optional_abilities",
        "test_nonblock_pipe_write_bigbuf",
        "test_nonblock_pipe_write_smallbuf",
        "test_open_pipe_with_append",
        "testBooleanFd",
        "test_unseekable",
        "test_telling",  # also: ours can tell in a loop
    ),
    "seek and tell make no system call here: the cursor is ours": ("testErrnoOnClosedSeek", "testErrnoOnClosedTell"),
    "it is about the class io.FileIO or io.TextIOWrapper itself: its repr, its arguments, subclasses of it, its private attributes": (
        "testBlksize",
        "testRepr",
        "testReprNoCloseFD",
        "testRecursiveRepr",
        "testInvalidInit",
        "testUnclosedFDOnException",
        "test_attributes",
        "test_closefd_attr",
        "test_constructor",
        "test_initialization",
        "test_uninitialized",
        "test_repr",
        "test_recursive_repr",
        "test_subclass_repr",
        "test_internal_buffer_size",
        "test_pickling",
        "test_seeking_too",  # the size of its chunks is set
        "test_illegal_decoder",
        "test_device_encoding",
    ),
    "ours cannot be taken apart or changed once it is open (detach, reconfigure)": (
        "test_detach",
        "test_reconfigure_defaults",
        "test_reconfigure_encoding_read",
        "test_reconfigure_errors",
        "test_reconfigure_line_buffering",
        "test_reconfigure_locale",
        "test_reconfigure_newline",
        "test_reconfigure_write",
        "test_reconfigure_write_fromascii",
        "test_reconfigure_write_non_seekable",
        "test_reconfigure_write_through",
    ),
    "nothing is held back here until flush or close, so these have nothing to do or to fail at": (
        "test_flush_error_on_close",
        "test_close_error_on_close",
        "test_nonnormalized_close_error_on_close",
        "test_line_buffering",
        "test_bufio_write_through",
    ),
    "it starts another interpreter, which writes to sys.stdout or sys.stderr: no file of ours": (
        "test_daemon_threads_shutdown_stdout_deadlock",
        "test_daemon_threads_shutdown_stderr_deadlock",
    ),
    "a file that is dropped is closed by the context, without calls that Python code could override": (
        "test_destructor",
        "test_override_destructor",
        "test_error_through_destructor",
        "test_garbage_collection",
    ),
}
"""Tests that are not for us, by reason. Others over objects that are no files of the system are skipped as they run (`TextOverBytesIO`)."""


@pytest.fixture(scope="module")
def _portal() -> Iterator[Portal]:
    with running_portal() as portal:
        yield portal


@pytest.fixture(autouse=True)
def _folder(_portal: Portal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    _portal.settle()


pytestmark = pytest.mark.filterwarnings("ignore")


class AutoFileTests(fileio.AutoFileTests, unittest.TestCase):
    FileIO = FileIO
    modulename = "trio_aio"


class OtherFileTests(fileio.OtherFileTests, unittest.TestCase):
    FileIO = FileIO
    modulename = "trio_aio"


class IOTest(general.CIOTest):
    FileIO = FileIO
    io = io
    open = staticmethod(open_synchronously)


class MiscIOTest(general.CMiscIOTest):
    FileIO = FileIO
    io = io
    open = staticmethod(open_synchronously)


class TextIOWrapperTest(textio.CTextIOWrapperTest):
    io = io
    open = staticmethod(open_synchronously)
    TextIOWrapper = TextOverBytesIO
    test_seek_and_tell = pytest.mark.slow(textio.CTextIOWrapperTest.test_seek_and_tell)


def _complete(case: type) -> None:
    """Give a class what its module's load_tests would: the names of io, and the module's mock objects in their C variant."""
    names = {name: getattr(io, name) for name in io.__all__}
    for module in (general, textio):
        names |= {name[1:]: getattr(module, name) for name in vars(module) if name.startswith("CM") and not name.endswith("Test")}
    for name, value in names.items():
        if name not in vars(case):
            setattr(case, name, value)


def _skip(case: type) -> None:
    for reason, tests in SKIPPED.items():
        for test in tests:
            if hasattr(case, test):
                setattr(case, test, unittest.skip(reason)(lambda self: None))


for _case in (IOTest, MiscIOTest, TextIOWrapperTest):
    _complete(_case)
for _case in (AutoFileTests, OtherFileTests, IOTest, MiscIOTest, TextIOWrapperTest):
    _skip(_case)
del _case

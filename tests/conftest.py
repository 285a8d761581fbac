"""Fixtures: the leak check that every test is under, and real filesystems. Hooks: what pytest says at the end."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import functools
import gc
import inspect
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import trio
import trio.testing
import uvloop

from trio_aio._lanes.inline import InlineLane
from trio_aio._lanes.threads import living
from trio_aio._native import lib

from .support.engine_loop import Loop, loop
from .support.files import is_open, make_file
from .support.programs import end_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_KERNEL_CONTEXT = "/[aio]"


def _descriptors() -> set[int]:
    listed = [int(entry) for entry in os.listdir("/proc/self/fd")]
    return {fd for fd in listed if is_open(fd)}  # all but that of the listing itself


def _kernel_contexts() -> int:
    """Count this process's AIO contexts. fs.aio-nr counts those of the whole host, which others may change meanwhile."""
    return Path("/proc/self/maps").read_text(encoding="ascii", errors="replace").count(_KERNEL_CONTEXT)


def _threads() -> set[str]:
    for thread in (*threading.enumerate(), *living):
        if thread.name.startswith(("trio_aio destroy", "trio_aio drain", "trio_aio poll", "trio_aio temporary", "AnyIO worker")):
            thread.join()  # they end by themselves, a moment later
    # trio keeps idle threads for its next run_sync.
    return {thread.name for thread in (*threading.enumerate(), *living) if not thread.name.startswith("Trio thread")}


@pytest.fixture(scope="session", autouse=True)
def _what_uvloop_keeps() -> None:
    """libuv makes a pipe for signals with a process's first loop, and never closes it."""
    uvloop.new_event_loop().close()


@pytest.fixture(scope="session", autouse=True)
def _server_of_programs() -> Iterator[None]:
    """`programs.run` starts it for the first program."""
    yield
    end_server()


@pytest.fixture(autouse=True)
def _leaves_nothing_behind() -> Iterator[None]:
    """Each test leaves descriptors, threads and kernel contexts as it found them; one idle context is kept for the next run by design.

    What exists before a test (modules, pytest's items and reports, more with every test) is frozen: the collections during the test and
    after it look at the test's own objects only. Unfrozen, they take 50 ms at the end of the suite.
    """
    gc.collect()
    gc.freeze()
    threads, descriptors = _threads(), _descriptors()
    yield
    gc.collect()
    assert _threads() == threads
    left = {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in _descriptors() - descriptors}
    assert not left
    contexts, _Between.contexts = _Between.contexts, _kernel_contexts()
    assert _Between.contexts <= max(contexts, 1)


class _Between:
    """How many kernel contexts there are between two tests. It takes 0.7 ms to count them, so that is not done before each test too."""

    contexts = 0


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Iterator[None]:
    """Count the contexts that several tests share."""
    result = yield
    _count_anew(fixturedef)
    return result


def pytest_fixture_post_finalizer(fixturedef: pytest.FixtureDef[Any]) -> None:
    """Count them again when they are gone."""
    _count_anew(fixturedef)


def _count_anew(fixturedef: pytest.FixtureDef[Any]) -> None:
    if fixturedef.scope != "function":
        _Between.contexts = _kernel_contexts()


@pytest.fixture
def fsspec_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Return an event loop in the place of fsspec's own."""
    from .support.fsspec_loop import running_fsspec_loop  # fsspec takes a third of a second

    with running_fsspec_loop() as made:
        yield made


@pytest.fixture
def zarr_loop() -> Iterator[None]:
    """End zarr's thread, which it keeps until the process ends."""
    if sys.version_info < (3, 12):
        pytest.skip("zarr 3.4 needs Python 3.12")
    from zarr.core import sync

    yield
    loop, thread = sync.loop[0], sync.iothread[0]
    if loop is not None and thread is not None:  # zarr waits for neither its loop nor the loop's threads
        asyncio.run_coroutine_threadsafe(loop.shutdown_default_executor(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
    sync.cleanup_resources()


def need(condition: bool, what: str) -> None:
    """Skip a test that needs `what`; under CI, where it has to be there, fail."""
    if not condition:
        if os.environ.get("CI"):
            pytest.fail(f"CI should have this: {what}")
        pytest.skip(f"needs {what}")


def _keep_mounts_to_ourselves() -> None:
    """Move to a mount namespace of our own, as root: however the process ends, the kernel unmounts what it mounted.

    Threads that run already stay in the old one, so do this before there are any.
    """
    c = ctypes.CDLL(None, use_errno=True)
    new_namespace, private_and_all_below = 0x00020000, 1 << 18 | 1 << 14  # CLONE_NEWNS; MS_PRIVATE | MS_REC
    if os.geteuid() == 0 and c.unshare(new_namespace) == 0 and c.mount(b"none", b"/", None, private_and_all_below, None) != 0:
        raise OSError(ctypes.get_errno(), "mount --make-rprivate /")


class _Mounts:
    """Filesystems, each mounted when it is first asked for."""

    def __init__(self, base: Path) -> None:
        """`base`: the folder of all temporary files of this process."""
        _keep_mounts_to_ourselves()
        self._points: list[Path] = []
        self._folders: dict[str, Path] = {}
        self._root: Path = base / "filesystems"
        self._images: Path = self._root
        if os.geteuid() == 0 and shutil.which("mkfs.ext4") is not None:
            self._keep_in_memory(base)
        self._root.mkdir()

    def _keep_in_memory(self, base: Path) -> None:
        """Mount ext4 as `base`, and keep its image and those of the others in memory.

        Then no fsync waits for the host's disk, which may be busy, and no file has to be deleted at the end.
        """
        memory = Path(tempfile.mkdtemp(prefix="memory-", dir=base.parent))
        if self._try_mount("-t", "tmpfs", "-o", "size=12g,mode=700", "tmpfs", to=memory):
            memory.rmdir()  # a container may not mount
            return
        self._images = memory
        failed = self._try_mount("-o", "loop", str(self._image("ext4", "base", 8 << 30, "-J", "size=32")), to=base)
        if not failed:
            base.chmod(0o700)

    def path(self, kind: str) -> Path:
        """Return the mounted filesystem's folder."""
        if kind not in self._folders:
            need(os.geteuid() == 0, f"root, to mount {kind}")
            folder = self._root / kind
            folder.mkdir(exist_ok=True)
            make: Callable[[Path], Path] = getattr(self, f"_mount_{kind}", lambda folder: self._mount_image(kind, folder))
            self._folders[kind] = make(folder)
        return self._folders[kind]

    def _try_mount(self, *arguments: str, to: Path) -> str:
        """Mount a filesystem. Return what was wrong, or nothing."""
        done = subprocess.run(["mount", *arguments, str(to)], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            self._points.append(to)
            return ""
        return f"`mount {' '.join(arguments)}`: {done.stderr.strip()}"

    def _mount(self, *arguments: str, to: Path) -> None:
        failed = self._try_mount(*arguments, to=to)
        need(not failed, failed)

    def _image(self, kind: str, name: str, size: int, *options: str) -> Path:
        """Make an empty filesystem in a file."""
        image = self._images / f"{name}.img"
        with image.open("wb") as file:
            file.truncate(size)
        subprocess.run([f"mkfs.{kind}", "-q", *options, str(image)], check=True, capture_output=True)
        return image

    def _mount_image(self, kind: str, folder: Path) -> Path:
        need(shutil.which(f"mkfs.{kind}") is not None, f"mkfs.{kind}")
        self._mount("-o", "loop", str(self._image(kind, folder.name, 512 << 20)), to=folder)
        return folder

    def _mount_tmpfs(self, folder: Path) -> Path:
        self._mount("-t", "tmpfs", "-o", "size=256m", "tmpfs", to=folder)
        return folder

    def _mount_small_tmpfs(self, folder: Path) -> Path:
        self._mount("-t", "tmpfs", "-o", "size=1m", "tmpfs", to=folder)
        return folder

    def _mount_splintered_xfs(self, folder: Path) -> Path:
        """What is free are single blocks: space that is reserved for a file is given to it piece by piece."""
        self._mount_image("xfs", folder)
        c = ctypes.CDLL(None)
        most, block, hole = 160 << 20, 4096, 0x01 | 0x02  # linux/falloc.h: KEEP_SIZE, PUNCH_HOLE
        with (folder / "holes").open("wb") as holes, (folder / "rest").open("wb") as rest:
            os.posix_fallocate(holes.fileno(), 0, most)
            size = 0
            for step in (64 << 20, 1 << 20, 1 << 12):
                with contextlib.suppress(OSError):  # ENOSPC
                    while True:
                        os.posix_fallocate(rest.fileno(), size, step)
                        size += step
            for offset in range(0, most, 2 * block):
                c.fallocate(holes.fileno(), hole, ctypes.c_long(offset), ctypes.c_long(block))
            os.fsync(holes.fileno())
            with contextlib.suppress(OSError):  # what the filesystem had kept back for itself is in one piece
                os.posix_fallocate(rest.fileno(), size, 44 << 20)
        return folder

    def _mount_overlay(self, folder: Path) -> Path:
        parts = {name: self.path("ext4") / f"overlay-{name}" for name in ("lower", "upper", "work")}
        for part in parts.values():
            part.mkdir()
        options = ",".join(f"{name}dir={part}" for name, part in parts.items())
        self._mount("-t", "overlay", "-o", options, "overlay", to=folder)
        return folder

    def unmount(self) -> None:
        for point in reversed(self._points):
            subprocess.run(["umount", "-l", str(point)], check=True)
        if self._images in self._points:
            self._images.rmdir()


@pytest.fixture(scope="session", autouse=True)
def _mounts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Mounts]:
    mounts = _Mounts(tmp_path_factory.getbasetemp())
    yield mounts
    mounts.unmount()


@pytest.fixture
def on_filesystem(_mounts: _Mounts, request: pytest.FixtureRequest) -> Callable[[str], Path]:
    """Return an empty folder on a filesystem: ext4, tmpfs, xfs, btrfs, overlay, small_tmpfs (1 MiB) or splintered_xfs."""
    name = re.sub(r"\W", "_", request.node.name)

    def folder(kind: str) -> Path:
        path = _mounts.path(kind) / name
        path.mkdir()
        request.addfinalizer(lambda: shutil.rmtree(path))
        return path

    return folder


@pytest.fixture(params=["ext4", "tmpfs", "xfs", "btrfs", "overlay"])
def filesystem(request: pytest.FixtureRequest, on_filesystem: Callable[[str], Path]) -> Path:
    """Return an empty folder on each filesystem in turn."""
    return on_filesystem(request.param)


@pytest.fixture
def disk(on_filesystem: Callable[[str], Path]) -> Path:
    """Return an empty folder on ext4, where direct I/O and RWF_NOWAIT work."""
    return on_filesystem("ext4")


@pytest.fixture
def file(disk: Path) -> tuple[Path, bytes]:
    """Return a file on ext4, and what is in it."""
    return make_file(disk)


@pytest.fixture
def no_read_slept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no inline read count as one that slept. A machine makes one wait now and then, and then its lane leaves the device."""
    monkeypatch.setattr(InlineLane, "_without_sleep", lambda lane, descriptor, n: n & ~lib.TAIO_SLEPT if n >= 0 else n)


@pytest.fixture
def engine_loop() -> Iterator[Loop]:
    """Yield an engine without an event loop."""
    with loop() as made:
        yield made


FILE_SIZE_LIMIT = 40 << 10


@pytest.fixture
def file_size_limit() -> int:
    """Return a limit of file sizes (RLIMIT_FSIZE); `pytest_runtest_call` puts it in force."""
    return FILE_SIZE_LIMIT


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Put the limit of file sizes in force for the test's call only: pytest's own output may be a longer file."""
    if "file_size_limit" not in getattr(item, "fixturenames", ()):
        return (yield)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_SIZE_LIMIT, old[1]))
    try:
        return (yield)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, ignored)


_HOST_LOCKS = pytest.StashKey[tuple[int, int]]()


def pytest_configure(config: pytest.Config) -> None:
    """Open two files that every test process of the host can lock: one to enter a test, and one that is held during it."""
    entrance, inside = (os.open(f"/proc/sys/fs/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in ("aio-nr", "aio-max-nr"))
    config.stash[_HOST_LOCKS] = entrance, inside
    config.add_cleanup(lambda: (os.close(entrance), os.close(inside)))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Keep tests of other processes out while a test with ``@pytest.mark.alone`` changes a limit of the whole host.

    All other tests hold the same lock shared. To enter takes a lock of its own: a test that waits to be alone lets no other one in.
    This comes before pytest's faulthandler plugin sets its timer: however long the wait, the test gets all of its time.
    """
    if os.environ.get("TRIO_AIO_HOST_IS_LOCKED"):  # by the test that started this suite, and waits for it
        return (yield)
    entrance, inside = item.config.stash[_HOST_LOCKS]
    fcntl.flock(entrance, fcntl.LOCK_EX)
    fcntl.flock(inside, fcntl.LOCK_SH if item.get_closest_marker("alone") is None else fcntl.LOCK_EX)
    fcntl.flock(entrance, fcntl.LOCK_UN)
    try:
        return (yield)
    finally:
        fcntl.flock(inside, fcntl.LOCK_UN)  # by name: a child of fork may keep the file open


def _eager_loop() -> asyncio.AbstractEventLoop:
    """Make a loop whose tasks begin to run when they are made."""
    loop = asyncio.new_event_loop()
    loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined,unused-ignore]
    return loop


BACKENDS: dict[str, tuple[str, dict[str, Any]]] = {
    "trio": ("trio", {}),
    "asyncio": ("asyncio", {}),
    "asyncio+debug": ("asyncio", {"debug": True}),
    "asyncio+uvloop": ("asyncio", {"use_uvloop": True}),
}
if sys.version_info >= (3, 12):
    BACKENDS["asyncio+eager"] = ("asyncio", {"loop_factory": _eager_loop})


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run tests with ``@pytest.mark.anyio`` on each event loop; what goes through filesystems, or is marked, on fewer."""
    if "anyio_backend" not in metafunc.fixturenames:
        return
    mark = metafunc.definition.get_closest_marker("backends")
    names = ("trio",) if "filesystem" in metafunc.fixturenames else tuple(BACKENDS) if mark is None else mark.args
    # Outside of their own tests, loops that differ in few ways from asyncio's usual one are for `make test-all`.
    slow = () if "backends" in metafunc.definition.path.parts else ("asyncio+debug", "asyncio+eager")
    values = [pytest.param(BACKENDS[name], marks=[pytest.mark.slow] if name in slow else []) for name in names]
    metafunc.parametrize("anyio_backend", values, ids=names)


@pytest.fixture
def anyio_backend() -> Any:
    """Return an event loop's name and options; `pytest_generate_tests` says which."""
    raise AssertionError


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a coroutine function on trio by `trio.run`.

    anyio's plugin makes trio the guest of a loop of its own, which hands each wait of trio to a thread, and so doubles the CPU time.
    """
    backend = pyfuncitem.funcargs.get("anyio_backend")
    if backend != BACKENDS["trio"] or not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    # `make test ARGS='-k trio' TRIO_AIO_MOCK_CLOCK=1`: no test may fail because of a clock that jumps.
    clock = trio.testing.MockClock(autojump_threshold=0) if os.environ.get("TRIO_AIO_MOCK_CLOCK") else None
    trio.run(functools.partial(pyfuncitem.obj, **arguments), clock=clock)
    return True


@pytest.fixture
def run(anyio_backend: tuple[str, dict[str, Any]]) -> Callable[..., Any]:
    """Return what runs a coroutine function on each event loop in turn."""
    name, options = anyio_backend
    return functools.partial(anyio.run, backend=name, backend_options=options)


# ---- what pytest says at the end

_LEFT_OUT = pytest.StashKey[int]()


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Count the slow tests that were left out."""
    for item in items:
        if item.get_closest_marker("slow") is not None:
            item.config.stash[_LEFT_OUT] = item.config.stash.get(_LEFT_OUT, 0) + 1


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tell pytest-xdist's main process what was left out: only its workers collect tests."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = session.config.stash.get(_LEFT_OUT, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take what a worker left out; all of them collect the same."""
    node.config.stash[_LEFT_OUT] = getattr(node, "workeroutput", {}).get("left_out", node.config.stash.get(_LEFT_OUT, 0))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say why tests were skipped: a line for each reason."""
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in terminalreporter.stats.get("skipped", ()))
    if reasons:
        terminalreporter.section("skipped")
        for reason, count in reasons.most_common():
            terminalreporter.write_line(f"{count:4} {reason}")


def pytest_unconfigure(config: pytest.Config) -> None:
    """End by saying which tests were left out."""
    left_out = config.stash.get(_LEFT_OUT, 0)
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if left_out and reporter is not None and not hasattr(config, "workeroutput"):
        was = "test was" if left_out == 1 else "tests were"
        reporter.write_line(f"{left_out} slow {was} left out; `make test-all` runs all")

"""The same random calls on a file of ours and on one of the built-in open(): results, exceptions, positions and the file after each."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from trio_aio import AsyncFile, AsyncTextFile, open_aio

from ..support.files import content

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS = 40

BINARY_MODES = ("rb", "r+b", "wb", "w+b", "ab", "a+b", "xb", "x+b")
SIZES = st.one_of(st.integers(0, 40), st.integers(0, 30_000), st.sampled_from([8191, 8192, 8193, 65536, 70_000]))
SIZES_OR_ALL = st.one_of(SIZES, st.sampled_from([-1, None]))
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "ascii", "cp1252", "shift_jis", "utf-7")
PLAIN = st.text(st.sampled_from("ab\n"), min_size=20, max_size=60)
TEXTS = st.text(st.sampled_from("ab\n\n\r\r\nxyz 0é€\U0001f600あ\x0b\x85\u2028"), max_size=60)


async def outcome(call: Callable[[], Any]) -> Any:
    """Return the result of a call, or the type of its exception."""
    try:
        result = call()
        return await result if hasattr(result, "__await__") else result
    except (OSError, ValueError) as error:
        return type(error)


async def given_lines(file: Any, count: int) -> list[Any]:
    """Return `count` lines of an ``async for`` that is left then."""
    lines: list[Any] = []
    if count:
        async for line in file:
            lines.append(line)
            if len(lines) == count:
                break
    return lines


READS = ("read", "readall", "readline", "readlines", "readinto", "readinto1", "read1", "peek", "lines")


def call_read(file: Any, name: str, argument: Any) -> Any:
    if name == "lines":
        return given_lines(file, argument or 1)
    if name in ("readinto", "readinto1"):
        argument = bytearray(argument)
    return getattr(file, name)() if argument is None else getattr(file, name)(argument)


class Machine(RuleBasedStateMachine):
    """Gathers the calls; the end of an example makes them, in one event loop."""

    folder: Path
    direct: bool = False

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, Any]] = []
        self.arguments: dict[str, Any] = {}
        self.before: bytes | None = None

    def teardown(self) -> None:
        if self.arguments:
            with tempfile.TemporaryDirectory(dir=self.folder) as folder:
                trio.run(self.replay, Path(folder))

    async def replay(self, folder: Path) -> None:
        paths = folder / "theirs", folder / "ours"
        if self.before is not None:
            for path in paths:
                path.write_bytes(self.before)
        theirs = await outcome(lambda: open(paths[0], **self.arguments))  # noqa: SIM115
        ours = await outcome(lambda: open_aio(paths[1], **self.arguments, direct=self.direct))
        if isinstance(theirs, type):
            assert ours is theirs
            return
        assert isinstance(ours, AsyncFile | AsyncTextFile)
        with theirs:
            async with ours:
                for name, argument in self.calls:
                    if not await self.step(theirs, ours, name, argument):
                        break
                    theirs_bytes, ours_bytes = (path.read_bytes() for path in paths)
                    assert ours_bytes == theirs_bytes, name
                else:
                    await ours.aclose()
                    theirs.close()
                    assert paths[1].read_bytes() == paths[0].read_bytes()

    async def step(self, theirs: Any, ours: Any, name: str, argument: Any) -> bool:
        """Make one call and compare. Return whether to continue."""
        raise NotImplementedError


class BinaryMachine(Machine):
    @initialize(mode=st.sampled_from(BINARY_MODES), size=st.one_of(st.none(), SIZES), seed=st.integers(0, 9))
    def start(self, mode: str, size: int | None, seed: int) -> None:
        self.arguments = {"mode": mode}
        if size is not None:
            # Lines of a hundred bytes or so, and some b"\r".
            self.before = content(size, seed).replace(b"x", b"\n").replace(b"y", b"\n")

    @rule(name=st.sampled_from(["read", "readline", "readlines"]), size=SIZES_OR_ALL)
    def read(self, name: str, size: int | None) -> None:
        self.calls.append((name, size))

    @rule(name=st.sampled_from(["readinto", "read1", "readinto1"]), size=SIZES)
    def read_some(self, name: str, size: int) -> None:
        self.calls.append((name, size))

    @rule(name=st.sampled_from(["readall", "tell", "flush", "peek"]))
    def without_argument(self, name: str) -> None:
        self.calls.append((name, None))

    @rule(count=st.integers(0, 400))
    def lines(self, count: int) -> None:
        self.calls.append(("lines", count))

    @rule(size=SIZES, seed=st.integers(0, 9))
    def write(self, size: int, seed: int) -> None:
        self.calls.append(("write", content(size, seed)))

    @rule(sizes=st.lists(st.integers(0, 200), max_size=5))
    def writelines(self, sizes: list[int]) -> None:
        self.calls.append(("writelines", [content(size, size) for size in sizes]))

    @rule(offset=st.one_of(st.integers(-40, 100), st.integers(-100, 100_000)), whence=st.sampled_from([0, 0, 1, 2]))
    def seek(self, offset: int, whence: int) -> None:
        self.calls.append(("seek", (offset, whence)))

    @rule(size=st.one_of(st.none(), st.integers(-1, 100), SIZES))
    def truncate(self, size: int | None) -> None:
        self.calls.append(("truncate", size))

    @rule(offset=st.integers(0, 20_000), size=st.integers(0, 300))
    def pwrite(self, offset: int, size: int) -> None:
        self.calls.append(("pwrite", (content(size, offset), offset)))

    async def step(self, theirs: Any, ours: Any, name: str, argument: Any) -> bool:
        expected, result = await self.results(theirs, ours, name, argument)
        assert result == expected, (name, argument)
        if theirs.writable():
            theirs.flush()
        assert await ours.tell() == theirs.tell(), (name, argument)
        return True

    async def results(self, theirs: Any, ours: Any, name: str, argument: Any) -> tuple[Any, Any]:
        if name in READS and not theirs.readable():  # a BufferedWriter's are not all implemented, and raise this and that
            return io.UnsupportedOperation, await outcome(lambda: call_read(ours, name, argument))
        if name == "writelines" and not argument and not theirs.writable():
            return None, None  # theirs looks at nothing then
        if name == "pwrite":
            return await self.positional_write(theirs, ours, *argument)
        if name in ("readinto", "readinto1"):
            buffers = bytearray(argument), bytearray(argument)
            if name == "readinto1":
                n = await outcome(lambda: ours.readinto1(buffers[1]))
                if isinstance(n, type):
                    return await outcome(lambda: theirs.readinto1(buffers[0])), n
                del buffers[0][n:]  # how much of it, each may choose
                filled = bytes(buffers[1][:n])
                assert n or not argument or not theirs.peek()
                return (theirs.readinto(buffers[0]), bytes(buffers[0])), (n, filled)
            return (await outcome(lambda: theirs.readinto(buffers[0])), buffers[0]), (
                await outcome(lambda: ours.readinto(buffers[1])),
                buffers[1],
            )
        if name in ("read1", "peek"):
            data = await getattr(ours, name)(argument or 0)
            if name == "peek":
                position = theirs.tell()
                expected = theirs.read(len(data) or 1)
                theirs.seek(position)
                return expected, data
            assert len(data) <= argument
            return theirs.read(len(data) or min(argument, 1)), data
        if name == "readall":
            return await outcome(theirs.read), await outcome(ours.readall)
        if name == "lines":
            return await outcome(lambda: [line for _ in range(argument) if (line := theirs.readline())]), await outcome(
                lambda: given_lines(ours, argument)
            )
        if name == "seek":
            return await outcome(lambda: theirs.seek(*argument)), await outcome(lambda: ours.seek(*argument))
        if name in ("tell", "flush"):
            return await outcome(getattr(theirs, name)), await outcome(getattr(ours, name))
        return await outcome(lambda: getattr(theirs, name)(argument)), await outcome(lambda: getattr(ours, name)(argument))

    async def positional_write(self, theirs: Any, ours: Any, data: bytes, offset: int) -> tuple[Any, Any]:
        if not ours.writable() or ours._descriptor.append:
            return None, None
        position = theirs.tell()
        theirs.seek(offset)
        theirs.write(data)
        theirs.seek(position)
        return len(data), await ours.pwrite(data, offset)


class TextMachine(Machine):
    @initialize(
        mode=st.sampled_from([mode.replace("b", "") for mode in BINARY_MODES]),
        encoding=st.sampled_from(ENCODINGS),
        errors=st.sampled_from(["strict", "replace", "ignore", "backslashreplace", None]),
        newline=st.sampled_from([None, "", "\n", "\r", "\r\n"]),
        text=st.one_of(st.none(), TEXTS, PLAIN),
        times=st.sampled_from([1, 1, 10, 300]),
    )
    def start(self, mode: str, encoding: str, errors: str | None, newline: str | None, text: str | None, times: int) -> None:
        self.arguments = {"mode": mode, "encoding": encoding, "errors": errors, "newline": newline}
        if text is not None:
            self.before = (text * times).encode(encoding, "ignore")

    @rule(name=st.sampled_from(["read", "readline", "readlines"]), size=st.one_of(st.integers(0, 40), SIZES_OR_ALL))
    def read(self, name: str, size: int | None) -> None:
        self.calls.append((name, size))

    @rule(count=st.integers(0, 30))
    def lines(self, count: int) -> None:
        self.calls.append(("lines", count))

    @rule(text=TEXTS)
    def write(self, text: str) -> None:
        self.calls.append(("write", text))

    @rule(texts=st.lists(TEXTS, max_size=4))
    def writelines(self, texts: list[str]) -> None:
        self.calls.append(("writelines", texts))

    @rule()
    def tell(self) -> None:
        self.calls.append(("tell", None))

    @rule(which=st.integers(0, 5))
    def seek_to_told(self, which: int) -> None:
        self.calls.append(("seek to told", which))

    @rule(arguments=st.sampled_from([(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (-1, 0), (0, 5)]))
    def seek(self, arguments: tuple[int, int]) -> None:
        self.calls.append(("seek", arguments))

    @rule(size=st.one_of(st.none(), st.integers(-1, 300)))
    def truncate(self, size: int | None) -> None:
        self.calls.append(("truncate", size))

    async def replay(self, folder: Path) -> None:
        self.told: list[tuple[int, int]] = []
        self.looped = False  # as readlines does to theirs, which then has not noted its place
        self.looked = False  # for its place, and theirs may forget at that which line ends it has seen
        await super().replay(folder)

    def _has_cr(self, file: Any) -> bool:
        return self.arguments["newline"] in (None, "") and b"\r" in Path(file.name).read_bytes()

    async def step(self, theirs: Any, ours: Any, name: str, argument: Any) -> bool:
        here = (name, argument) == ("seek", (0, 1))
        if self.looped and (here or name in ("tell", "write", "writelines")):
            return False
        self.looped = name == "readlines" or (self.looped and (name, argument) not in (("seek", (0, 0)), ("seek", (0, 2))))
        if name == "lines":
            expected = await outcome(lambda: [line for _ in range(argument) if (line := theirs.readline())])
            result = await outcome(lambda: given_lines(ours, argument))
        elif name == "tell":
            both = await outcome(theirs.tell), await outcome(ours.tell)
            expected, result = isinstance(both[0], int), isinstance(both[1], int)
            self.told.append(both)
        elif name == "seek to told":
            if argument >= len(self.told):
                return True
            cookies = self.told[argument]
            expected, result = (
                isinstance(await outcome(lambda: theirs.seek(cookies[0])), int),
                isinstance(await outcome(lambda: ours.seek(cookies[1])), int),
            )
        elif name == "seek":
            expected = await outcome(lambda: theirs.seek(*argument))
            result = await outcome(lambda: ours.seek(*argument))
            if here:
                expected, result = isinstance(expected, int), isinstance(result, int)
                if result and self._has_cr(ours):
                    return False  # close to a "\r" theirs may miss its place
        else:
            if name == "writelines" and not argument and not theirs.writable():
                return True  # theirs looks at nothing then
            if (name, argument) == ("readline", 0):
                argument = 1  # theirs reads a chunk for nothing
            theirs_argument = -1 if name == "readline" and argument is None else argument  # which None may not be here
            expected = await outcome(lambda: getattr(theirs, name)(theirs_argument))
            result = await outcome(lambda: getattr(ours, name)(argument))
        assert result == expected, (name, argument)
        if isinstance(expected, type) and issubclass(expected, UnicodeError):
            return False  # they are then behind the chunk, and we where we were
        flushed = await outcome(theirs.flush)
        if isinstance(flushed, type):
            return False
        self.looked = self.looked or here or name == "tell"
        assert self.looked or ours.newlines == theirs.newlines
        assert await ours.buffer.tell() == theirs.buffer.tell(), (name, argument)
        return True


def run(machine: type[Machine], folder: Path, examples: int, *, direct: bool = False) -> None:
    class Placed(machine):  # type: ignore[valid-type, misc]
        pass

    Placed.folder, Placed.direct = folder, direct
    run_state_machine_as_test(
        Placed,
        settings=settings(
            max_examples=examples,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=set(Phase) - {Phase.explain},  # which traces all code, a minute long
        ),
    )


EXAMPLES = pytest.mark.parametrize("examples", [50, pytest.param(100, marks=pytest.mark.slow)])


@EXAMPLES
@pytest.mark.parametrize("direct", [False, True])
def test_binary_file_equals_that_of_open(disk: Path, direct: bool, examples: int) -> None:
    run(BinaryMachine, disk, examples, direct=direct)


@EXAMPLES
@pytest.mark.parametrize("direct", [False, True])
def test_text_file_equals_that_of_open(disk: Path, direct: bool, examples: int) -> None:
    run(TextMachine, disk, examples, direct=direct)

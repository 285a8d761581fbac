"""`FileResponse` and `StaticFiles`: what Starlette's own tests leave out. The model is Starlette's class."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio
import anyio.lowlevel
import pytest
import starlette.responses
import starlette.staticfiles

from trio_aio.integrations.starlette import FileResponse, StaticFiles

from ..support.files import content

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SIZE = 3_000_000
SPEC = {"spec_version": "2.4"}


class Answer(NamedTuple):
    """What a response sent."""

    status: int
    headers: dict[str, str]
    body: bytes
    messages: list[dict[str, Any]]


async def answer(app: Any, headers: dict[str, str] | None = None, *, method: str = "GET", path: str = "/", **scope: Any) -> Answer:
    """Call an ASGI application once, and return what it sent."""
    messages: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return await anyio.sleep_forever()  # type: ignore[return-value]

    async def send(message: Any) -> None:
        messages.append(message)

    raw = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    await app({"type": "http", "method": method, "path": path, "headers": raw, "asgi": SPEC, **scope}, receive, send)
    body = b"".join(message.get("body", b"") for message in messages)
    sent = {name.decode(): value.decode() for name, value in messages[0]["headers"]}
    assert [message.get("more_body") for message in messages[1:-1]] == [True] * (len(messages) - 2)
    assert not messages[-1].get("more_body")
    return Answer(messages[0]["status"], sent, body, messages)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "file.bin"
    made.write_bytes(content(SIZE))
    return made


def both(path: Path, headers: dict[str, str] | None = None, method: str = "GET", **scope: Any) -> tuple[Answer, Answer]:
    """Return the answers of our class and of Starlette's."""

    async def main() -> tuple[Answer, Answer]:
        ours = await answer(FileResponse(path), headers, method=method, **scope)
        return ours, await answer(starlette.responses.FileResponse(path), headers, method=method, **scope)

    return anyio.run(main)


def comparable(given: Answer) -> tuple[int, dict[str, str], bytes]:
    """Return an answer without its boundary, which is random."""
    boundary = re.search(r"boundary=(\w+)", given.headers.get("content-type", ""))
    if boundary is None:
        return given[:3]
    headers = {name: value.replace(boundary[1], "") for name, value in given.headers.items()}
    return given.status, headers, given.body.replace(boundary[1].encode(), b"")


RANGES = [
    "bytes=0-",
    "bytes=0-0",
    "bytes=5-9",
    "bytes=-5",
    "bytes=-99999999",
    f"bytes={SIZE - 1}-",
    f"bytes=10-{SIZE * 2}",
    "bytes=0-9,20-29",
    "bytes=0-9,5-29,100-",
    "bytes=100-109,0-9",
    "bytes=0-2000000,2500000-2500010",
    "bytes=" + ",".join(f"{i * 1000}-{i * 1000 + 9}" for i in range(100)),
    "bytes=" + ",".join(f"{i * 1000}-{i * 1000 + 9}" for i in range(101)),
    f"bytes={SIZE}-",
    "bytes=-0",
    "bytes=9-5",
    "bytes=",
    "bytes=a-b",
    "bytes=0-9,x",
    "bytes",
    "lines=0-9",
    "Bytes = 0-9",
    "bytes=0-9,9-5",
    "bytes=,0-9,",
    "bytes= 0 - 9 , -5",
    "bytes=-5,-3",
    "bytes=0-9,5-14",
    "bytes=0-9,10-19",
    "bytes=00000000000000000000000000-9",
    "bytes=0-9-",
    "bytes=0 0-9",
    "bytes=-",
    "bytes=\xb2-9",
    f"bytes={SIZE - 1}-{SIZE - 1}",
]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("wanted", [None, *RANGES])
def test_answer_is_starlettes(path: Path, wanted: str | None, method: str) -> None:
    ours, theirs = both(path, {} if wanted is None else {"range": wanted}, method)
    assert comparable(ours) == comparable(theirs)


@pytest.mark.parametrize("wanted", ["bytes=0-9", "bytes=0-9,20-29,2000000-2500000"])
def test_answer_does_not_depend_on_starlettes_own_ranges(path: Path, wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = both(path, {"range": wanted})[1]
    # Older versions have no such limit, or another multipart body.
    monkeypatch.delattr(starlette.responses.FileResponse, "max_ranges")
    monkeypatch.delattr(starlette.responses.FileResponse, "generate_multipart")

    async def main() -> Answer:
        return await answer(FileResponse(path), {"range": wanted})

    assert comparable(anyio.run(main)) == comparable(expected)


@pytest.mark.parametrize("size", [0, 1, 1 << 18, (1 << 18) + 1, (1 << 20) + 1])
def test_whole_file_is_sent(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(content(size))
    ours, theirs = both(path)
    assert ours.body == content(size)
    assert comparable(ours) == comparable(theirs)


@pytest.mark.parametrize("condition", ["etag", "last-modified", "other", "weak"])
def test_range_with_if_range_is_starlettes(path: Path, condition: str) -> None:
    headers = both(path)[1].headers
    values = {"other": '"other"', "weak": f"W/{headers['etag']}", **headers}
    ours, theirs = both(path, {"range": "bytes=0-9", "if-range": values[condition]})
    assert comparable(ours) == comparable(theirs)
    assert ours.status == (206 if condition in headers else 200)


def test_range_with_the_files_own_weak_tag_is_the_whole_file(path: Path) -> None:
    async def main() -> Answer:
        response = FileResponse(path, headers={"etag": 'W/"weak"'})
        return await answer(response, {"range": "bytes=0-9", "if-range": 'W/"weak"'})

    assert anyio.run(main).status == 200


def test_ranges_that_can_be_served_are(path: Path) -> None:
    ours, theirs = both(path, {"range": f"bytes=0-9,{SIZE + 5}-{SIZE + 9}"})
    assert (ours.status, ours.body, ours.headers["content-range"]) == (206, content(SIZE)[:10], f"bytes 0-9/{SIZE}")
    assert theirs.status == 416


def test_range_that_ends_before_it_starts_is_refused_also_beyond_the_end(path: Path) -> None:
    ours, theirs = both(path, {"range": f"bytes=0-9,{SIZE + 9}-{SIZE + 5}"})
    assert (ours.status, theirs.status) == (400, 416)


def test_background_task_runs_after_a_response_and_not_after_an_error(path: Path) -> None:
    done: list[str] = []

    async def main() -> None:
        for cls in (FileResponse, starlette.responses.FileResponse):
            for wanted in ("bytes=0-9", "bytes=x", f"bytes={SIZE}-"):

                async def background(note: str = f"{cls.__module__}: {wanted}") -> None:
                    done.append(note)

                await answer(cls(path, background=background), {"range": wanted})  # type: ignore[arg-type]

    anyio.run(main)
    assert done == ["trio_aio.integrations.starlette: bytes=0-9", "starlette.responses: bytes=0-9"]


def test_response_that_is_sent_again_describes_the_file_anew(path: Path) -> None:
    async def main() -> list[Answer]:
        response = FileResponse(path, headers={"x-kept": "1"})
        answers = [await answer(response)]
        for size in (SIZE + 1000, 10):
            os.truncate(path, size)
            os.utime(path, (size, size))
            answers.append(await answer(response))
            answers.append(await answer(response, {"range": "bytes=0-", "if-range": answers[-1].headers["etag"]}))
            answers.append(await answer(response, {"range": "bytes=0-", "if-range": answers[0].headers["etag"]}))
        return answers

    answers = anyio.run(main)
    assert [len(given.body) for given in answers] == [SIZE] + [SIZE + 1000] * 3 + [10] * 3
    assert all(int(given.headers["content-length"]) == len(given.body) for given in answers)
    assert [given.status for given in answers] == [200, 200, 206, 200, 200, 206, 200]
    assert len({given.headers["etag"] for given in answers}) == len({given.headers["last-modified"] for given in answers}) == 3
    assert {given.headers["x-kept"] for given in answers} == {"1"}


def test_headers_that_the_caller_has_set_are_kept(path: Path) -> None:
    async def main() -> list[Answer]:
        response = FileResponse(path, headers={"etag": '"mine"', "last-modified": "Thu, 01 Jan 1970 00:00:00 GMT"})
        return [await answer(response), await answer(response, {"range": "bytes=0-9", "if-range": '"mine"'})]

    answers = anyio.run(main)
    assert [given.status for given in answers] == [200, 206]
    assert {(given.headers["etag"], given.headers["last-modified"]) for given in answers} == {('"mine"', "Thu, 01 Jan 1970 00:00:00 GMT")}


def descriptors(path: Path) -> int:
    """Return how many descriptors of a file this process has open."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the listing
            found += os.readlink(f"/proc/self/fd/{name}") == str(path)
    return found


@pytest.mark.parametrize("spec", ["2.0", "2.4"])
@pytest.mark.parametrize("backend", ["asyncio", "trio", "Task.cancel"])
@pytest.mark.parametrize("wanted", [None, "bytes=0-9,2000000-2500000"])
def test_response_that_is_cancelled_leaves_no_descriptor(path: Path, spec: str, backend: str, wanted: str | None) -> None:
    headers = [] if wanted is None else [(b"range", wanted.encode())]
    scope = {"type": "http", "method": "GET", "headers": headers, "asgi": {"spec_version": spec}}

    async def send(message: Any) -> None:
        await anyio.lowlevel.checkpoint()

    async def in_a_scope(ticks: int) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(FileResponse(path), scope, anyio.sleep_forever, send)  # type: ignore[arg-type]
            for _ in range(ticks):
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()

    async def by_task_cancel(ticks: int) -> None:
        task = asyncio.create_task(FileResponse(path)(scope, anyio.sleep_forever, send))  # type: ignore[arg-type]
        for _ in range(ticks):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    for ticks in (*range(12), 20, 40):
        if backend == "Task.cancel":
            asyncio.run(by_task_cancel(ticks))
        else:
            anyio.run(in_a_scope, ticks, backend=backend)
        assert descriptors(path) == 0


def test_number_of_many_digits_is_beyond_the_end(path: Path) -> None:
    ours, _ = both(path, {"range": f"bytes=0-{'9' * 5000}"})
    assert (ours.status, len(ours.body)) == (206, SIZE)


@pytest.mark.parametrize("wanted", ["{spaces}x", "-{spaces}x", "0{spaces}-{spaces}x", "{spaces},0-9"])
def test_range_with_very_many_spaces_is_read_in_one_pass(path: Path, wanted: str) -> None:
    # By the square of their number it would take an hour, and the event loop would stand still.
    ours, theirs = both(path, {"range": f"bytes={wanted.format(spaces=' ' * 1_000_000)}"})
    assert comparable(ours) == comparable(theirs)


def test_pathsend_sends_the_path_unless_a_range_is_wanted(path: Path) -> None:
    extensions = {"http.response.pathsend": {}}
    for headers in ({}, {"range": "bytes=0-9"}, {"range": "bytes=0-9", "if-range": '"other"'}):
        ours, theirs = both(path, headers, extensions=extensions)
        assert comparable(ours) == comparable(theirs)
        assert [message["type"] for message in ours.messages] == [message["type"] for message in theirs.messages]
    assert ours.messages[1] == {"type": "http.response.pathsend", "path": str(path)}


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("ranges", [None, "bytes=0-2500000", "bytes=0-9,2000000-2500000", "bytes=0-9,2500000-2500010"])
@pytest.mark.parametrize("change", ["shrinks", "grows"])
def test_file_that_changes_after_it_was_described(path: Path, change: str, ranges: str | None, backend: str) -> None:
    described = path.stat()
    if change == "shrinks":
        os.truncate(path, SIZE // 2)
    else:
        with path.open("ab") as file:
            file.write(bytes(1000))

    async def main() -> Answer:
        return await answer(FileResponse(path, stat_result=described), {} if ranges is None else {"range": ranges})

    if change == "shrinks":
        with pytest.raises(RuntimeError, match="is shorter than expected"):
            anyio.run(main, backend=backend)
    else:
        ours = anyio.run(main, backend=backend)
        assert len(ours.body) == int(ours.headers["content-length"])


@pytest.mark.parametrize(
    ("make", "reason"), [(lambda path: None, "does not exist"), (os.mkdir, "is not a file"), (os.mkfifo, "is not a file")]
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_no_file_is_a_runtime_error_before_the_response_starts(
    tmp_path: Path, make: Callable[[Path], None], reason: str, method: str
) -> None:
    path = tmp_path / "other"
    make(path)
    messages: list[Any] = []

    async def send(message: Any) -> None:
        messages.append(message)

    async def main() -> None:
        await FileResponse(path)({"type": "http", "method": method, "headers": [], "asgi": SPEC}, anyio.sleep_forever, send)  # type: ignore[arg-type]

    with pytest.raises(RuntimeError, match=reason):
        anyio.run(main)
    assert not messages


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("spec", ["2.0", "2.4"])
def test_client_that_goes_ends_the_response_and_closes_the_file(path: Path, spec: str, backend: str) -> None:
    sent = 0
    done = []

    async def background() -> None:
        done.append(True)

    async def main() -> None:
        gone = anyio.Event()

        async def receive() -> dict[str, str]:
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            nonlocal sent
            sent += len(message.get("body", b""))
            if sent:
                gone.set()
                if spec == "2.4":
                    raise OSError("the client has gone")
                await anyio.sleep_forever()

        response = FileResponse(path, background=background)  # type: ignore[arg-type]
        await response({"type": "http", "method": "GET", "headers": [], "asgi": {"spec_version": spec}}, receive, send)

    if spec == "2.4":
        with pytest.raises(OSError, match="the client has gone"):
            anyio.run(main, backend=backend)
    else:
        anyio.run(main, backend=backend)
        assert done
    assert 0 < sent < SIZE


@pytest.mark.parametrize("spec", ["2.0", "2.4"])
def test_error_of_send_is_raised_as_it_is(path: Path, spec: str) -> None:
    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            raise ZeroDivisionError

    async def main() -> None:
        await FileResponse(path)(
            {"type": "http", "method": "GET", "headers": [], "asgi": {"spec_version": spec}}, anyio.sleep_forever, send
        )  # type: ignore[arg-type]

    with pytest.raises(ZeroDivisionError):
        anyio.run(main)


# ---- StaticFiles


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_static_files_answers_are_starlettes(path: Path, tmp_path: Path, backend: str) -> None:
    (tmp_path / "404.html").write_text("no such file")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "index.html").write_text("index")
    options: dict[str, Any] = {"directory": tmp_path, "html": True}

    async def main() -> None:
        ours, theirs = StaticFiles(**options), starlette.staticfiles.StaticFiles(**options)
        for name in ("/file.bin", "/missing", "/folder/", "/folder", "/../x"):
            found = [await answer(app, path=name, root_path="", query_string=b"", server=None) for app in (ours, theirs)]
            assert comparable(found[0]) == comparable(found[1])
        etag = (await answer(ours, path="/file.bin", root_path="")).headers["etag"]
        assert (await answer(ours, {"if-none-match": etag}, path="/file.bin", root_path="")).status == 304
        response = await ours.get_response("missing", {"type": "http", "method": "GET", "headers": [], "path": "/missing"})
        assert type(response) is FileResponse
        assert type(await ours.get_response("file.bin", {"type": "http", "method": "GET", "headers": []})) is FileResponse

    anyio.run(main, backend=backend)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("name", ["file.bin", "missing"])
def test_static_file_that_is_replaced_before_it_is_opened_is_the_new_one(path: Path, tmp_path: Path, name: str, method: str) -> None:
    named = path if name == "file.bin" else tmp_path / "404.html"
    named.write_bytes(b"old")
    os.utime(named, (1, 1))

    async def main() -> tuple[Answer, Answer]:
        files = StaticFiles(directory=tmp_path, html=True)
        scope = {"type": "http", "method": method, "headers": [], "path": f"/{name}"}
        response = await files.get_response(name, scope)
        assert response.headers["content-length"] == "3"
        (tmp_path / "new").write_bytes(content(5000))
        os.replace(tmp_path / "new", named)
        return await answer(response, method=method), await answer(await files.get_response(name, scope), method=method)

    old, new = anyio.run(main)
    assert comparable(old) == comparable(new)
    assert new.headers["content-length"] == "5000"
    assert len(new.body) == (5000 if method == "GET" else 0)


def test_missing_package_is_an_import_error_that_names_the_extra() -> None:
    program = "import sys; sys.modules['starlette'] = None; import trio_aio.integrations.starlette"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert re.search(r"ImportError: .*pip install 'trio-aio\[starlette\]'", done.stderr)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_headers_that_a_subclass_has_removed_stay_removed(path: Path, method: str) -> None:
    def without(base: Any) -> Any:
        class NotCached(base):  # type: ignore[misc]
            async def get_response(self, path: str, scope: Any) -> Any:
                response = await super().get_response(path, scope)
                del response.headers["etag"]
                del response.headers["last-modified"]
                response.headers["cache-control"] = "no-store"
                return response

        return NotCached(directory=path.parent)

    async def main() -> None:
        for headers in ({}, {"range": "bytes=0-9"}, {"range": "bytes=0-9", "if-range": '"x"'}):
            ours = await answer(without(StaticFiles), headers, method=method, path=f"/{path.name}")
            assert not {"etag", "last-modified"} & {*ours.headers}
            if "if-range" not in headers:
                theirs = await answer(without(starlette.staticfiles.StaticFiles), headers, method=method, path=f"/{path.name}")
                assert ours[:3] == theirs[:3]

    anyio.run(main)


def test_header_that_was_removed_stays_removed_when_a_response_is_sent_again(path: Path) -> None:
    async def main() -> None:
        response = FileResponse(path)
        assert "etag" in (await answer(response)).headers
        del response.headers["etag"]
        for _ in range(3):
            assert "etag" not in (await answer(response)).headers

    anyio.run(main)

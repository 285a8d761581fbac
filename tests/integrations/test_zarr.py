"""`AioStore`: zarr's tests of stores, and what they leave out. The model is `LocalStore`."""

from __future__ import annotations

import asyncio
import builtins
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy
import pytest

if sys.version_info < (3, 12):
    pytest.skip("zarr 3.4 needs Python 3.12", allow_module_level=True)

import zarr
import zarr.core.sync
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.core.buffer.cpu import Buffer
from zarr.storage import LocalStore
from zarr.testing.stateful import ZarrHierarchyStateMachine, ZarrStoreStateMachine
from zarr.testing.store import StoreTests

import trio_aio
from trio_aio.integrations.zarr import AioStore

from ..support.files import content
from ..support.programs import check

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable, Coroutine

pytestmark = pytest.mark.usefixtures("zarr_loop")

SIZE = 10_000
REQUESTS = (
    None,
    RangeByteRequest(0, 10),
    RangeByteRequest(5, 5),
    RangeByteRequest(SIZE - 5, SIZE + 5),
    RangeByteRequest(SIZE + 5, SIZE + 9),
    RangeByteRequest(10, 2 << 20),
    OffsetByteRequest(0),
    OffsetByteRequest(SIZE - 1),
    OffsetByteRequest(SIZE + 1),
    SuffixByteRequest(0),
    SuffixByteRequest(3),
    SuffixByteRequest(SIZE + 3),
)


# ---- zarr's own tests


@pytest.mark.anyio
@pytest.mark.backends("asyncio")
@pytest.mark.usefixtures("anyio_backend")
class TestStore(StoreTests[AioStore, Buffer]):
    """zarr's tests of a store."""

    store_cls = AioStore
    buffer_cls = Buffer

    @pytest.fixture
    def store_kwargs(self, tmp_path: pathlib.Path) -> dict[str, Any]:
        return {"root": str(tmp_path)}

    async def get(self, store: AioStore, key: str) -> Buffer:
        return self.buffer_cls.from_bytes((store.root / key).read_bytes())

    async def set(self, store: AioStore, key: str, value: Any) -> None:
        (store.root / key).parent.mkdir(parents=True, exist_ok=True)
        (store.root / key).write_bytes(value.to_bytes())

    def test_store_repr(self, store: AioStore) -> None:
        assert repr(store) == f"AioStore('file://{store.root}')"

    def test_store_supports_writes(self, store: AioStore) -> None:
        assert store.supports_writes

    def test_store_supports_listing(self, store: AioStore) -> None:
        assert store.supports_listing


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning", "ignore::zarr.errors.UnstableSpecificationWarning")
@pytest.mark.parametrize("machine", [ZarrStoreStateMachine, ZarrHierarchyStateMachine])
def test_zarrs_state_machine_finds_nothing(tmp_path: pathlib.Path, machine: Any) -> None:
    store = zarr.core.sync.sync(AioStore.open(tmp_path / "store"))
    health = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    chosen = settings(max_examples=20, deadline=None, suppress_health_check=health, database=None)
    run_state_machine_as_test(lambda: machine(store), settings=chosen)


# ---- ours


def stores(root: pathlib.Path) -> tuple[AioStore, LocalStore]:
    return AioStore(root), LocalStore(root)


def in_both(main: Callable[[LocalStore], Coroutine[Any, Any, Any]], folder: pathlib.Path) -> tuple[Any, Any]:
    """Return what a coroutine function returns for our store, and for zarr's, each in a folder of its own."""
    for name in ("ours", "theirs"):
        (folder / name).mkdir()
    return asyncio.run(main(AioStore(folder / "ours"))), asyncio.run(main(LocalStore(folder / "theirs")))


def plain(buffer: Any) -> bytes | None:
    data: bytes | None = None if buffer is None else buffer.to_bytes()
    return data


def test_reads_are_local_stores(tmp_path: pathlib.Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "key").write_bytes(content(SIZE))
    prototype = default_buffer_prototype()

    async def main() -> None:
        ours, theirs = stores(tmp_path)
        for key in ("folder/key", "folder", "missing", "folder/key/below"):
            for request in REQUESTS:
                assert plain(await ours.get(key, prototype, request)) == plain(await theirs.get(key, prototype, request)), (key, request)
            assert await ours.exists(key) == await theirs.exists(key)
        wanted = [("folder/key", request) for request in REQUESTS]
        expected = [plain(await theirs.get(key, prototype, request)) for key, request in wanted]
        assert [*map(plain, await ours.get_partial_values(prototype, wanted))] == expected
        assert [*map(plain, await ours.get_partial_values(prototype, [("missing", None), *wanted]))] == [None, *expected]
        many = [found async for found in ours._get_many([(key, prototype, request) for key, request in [*wanted, ("missing", None)]])]
        assert sorted((key, plain(data) or b"") for key, data in many) == sorted(
            [("missing", b""), *(("folder/key", data) for data in expected if data is not None)]
        )

    asyncio.run(main())


@pytest.mark.parametrize("request_", [RangeByteRequest(-3, 5), RangeByteRequest(-5, -1), RangeByteRequest(5, 2), OffsetByteRequest(-3)])
def test_byte_request_that_no_index_can_have_raises(tmp_path: pathlib.Path, request_: Any) -> None:
    async def main(store: LocalStore) -> None:
        prototype = default_buffer_prototype()
        (store.root / "key").write_bytes(content(SIZE))
        with pytest.raises((ValueError, OSError)):
            await store.get("key", prototype, request_)
        with pytest.raises((ValueError, OSError)):
            await store.get_partial_values(prototype, [("key", request_)])
        assert plain(await store.get("key", prototype, SuffixByteRequest(-3))) == b""

    in_both(main, tmp_path)


def test_range_far_beyond_the_value_needs_no_memory_for_it(tmp_path: pathlib.Path) -> None:
    (tmp_path / "key").write_bytes(content(SIZE))
    data = asyncio.run(AioStore(tmp_path).get("key", byte_range=RangeByteRequest(10, 1 << 40)))
    assert plain(data) == content(SIZE)[10:]


def test_get_many_of_whole_values_is_one_read_files(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = trio_aio.read_files
    monkeypatch.setattr(trio_aio, "read_files", lambda *args, **options: calls.append(1) or original(*args, **options))
    for index in range(100):
        (tmp_path / f"{index}").write_bytes(content(index))

    async def main() -> dict[str, bytes | None]:
        requests = [(f"{index}", default_buffer_prototype(), None) for index in range(101)]
        return {key: plain(data) async for key, data in AioStore(tmp_path)._get_many(requests)}

    assert asyncio.run(main()) == {**{f"{index}": content(index) for index in range(100)}, "100": None}
    assert len(calls) == 1


def test_ranges_of_a_value_are_one_batch_of_one_open_file(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_bytes(content(SIZE))
    calls = []
    original = trio_aio.open_aio
    monkeypatch.setattr(trio_aio, "open_aio", lambda *args, **options: calls.append(1) or original(*args, **options))

    async def ranges(store: Any, key: str, **options: Any) -> list[list[tuple[int, bytes | None]]]:
        batches = store.get_ranges(key, REQUESTS, prototype=default_buffer_prototype(), **options)
        return [[(index, plain(data)) for index, data in batch] async for batch in batches]

    async def main() -> None:
        ours, theirs = stores(tmp_path)
        for gap in (0, 1 << 20):
            [batch] = await ranges(ours, "key", max_gap_bytes=gap)
            assert batch == sorted(found for batch in await ranges(theirs, "key") for found in batch)
        assert len(calls) == 2
        for store in (ours, theirs):
            with pytest.raises(builtins.BaseExceptionGroup) as raised:
                await ranges(store, "missing")
            assert raised.group_contains(FileNotFoundError)
        assert [batch async for batch in ours.get_ranges("missing", [], prototype=default_buffer_prototype())] == []

    asyncio.run(main())


def test_set_replaces_the_value_as_a_whole(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        store = AioStore(tmp_path)
        await store.set("a/b", Buffer.from_bytes(b"old"))
        with (tmp_path / "a" / "b").open("rb") as reader:
            await store.set("a/b", Buffer.from_bytes(b"new value"))
            assert reader.read() == b"old"
        await store.set_if_not_exists("a/b", Buffer.from_bytes(b"not taken"))
        await store.set_if_not_exists("a/c", Buffer.from_bytes(b"taken"))
        assert sorted(os.listdir(tmp_path / "a")) == ["b", "c"]
        assert (tmp_path / "a" / "b").read_bytes() == b"new value"
        assert (tmp_path / "a" / "c").read_bytes() == b"taken"
        with pytest.raises(ValueError, match="that is a file"):
            await store.delete_dir("a/b")
        await store.delete("missing")
        await store.delete("a/b")
        await store.delete("a")
        await store.delete_dir("missing")
        assert os.listdir(tmp_path) == []

    asyncio.run(main())


def test_set_replaces_a_link_and_keeps_what_it_points_to(tmp_path: pathlib.Path) -> None:
    async def main(store: LocalStore) -> list[Any]:
        (store.root / "shared").write_bytes(b"shared")
        found: list[Any] = []
        for target in ("shared", "nowhere"):
            (store.root / "link").symlink_to(target)
            await store.set_if_not_exists("link", Buffer.from_bytes(b"not taken"))
            found.append((store.root / "link").is_symlink())
            await store.set("link", Buffer.from_bytes(b"new"))
            found += [(store.root / "link").is_symlink(), plain(await store.get("link")), sorted(os.listdir(store.root))]
            (store.root / "link").unlink()
        return [*found, (store.root / "shared").read_bytes()]

    ours, theirs = in_both(main, tmp_path)
    assert ours == theirs
    assert ours[-1] == b"shared"


def test_delete_dir_of_what_is_no_folder_is_local_stores(tmp_path: pathlib.Path) -> None:
    async def main(store: LocalStore) -> list[Any]:
        (store.root / "file").write_bytes(b"")
        (store.root / "broken").symlink_to("nowhere")
        os.mkfifo(store.root / "fifo")
        found: list[Any] = []
        for prefix in ("missing", "missing/below", "file", "file/below", "broken", "fifo"):
            try:
                found.append(await store.delete_dir(prefix))
            except (OSError, ValueError) as error:
                found.append(type(error))
        return [*found, sorted(os.listdir(store.root))]

    ours, theirs = in_both(main, tmp_path)
    assert ours == theirs


def test_get_many_of_ranges_opens_each_value_once(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in "ab":
        (tmp_path / key).write_bytes(content(SIZE))
    opened = []
    original = trio_aio.open_aio
    monkeypatch.setattr(trio_aio, "open_aio", lambda *args, **options: opened.append(args[0]) or original(*args, **options))
    prototype = default_buffer_prototype()

    async def main() -> list[tuple[str, bytes | None]]:
        requests = [(key, prototype, SuffixByteRequest(size)) for size in (1, 2, 3) for key in "abc"]
        return [(key, plain(data)) async for key, data in AioStore(tmp_path)._get_many([*requests, ("a", prototype, None)])]

    found = asyncio.run(main())
    expected = [(key, None if key == "c" else content(SIZE)[-size:]) for size in (1, 2, 3) for key in "abc"]
    assert sorted(found, key=repr) == sorted([*expected, ("a", content(SIZE))], key=repr)
    assert [os.path.basename(path) for path in opened if not path.endswith("c")] in (["a", "b"], ["b", "a"])


@pytest.mark.parametrize("shards", [None, (40, 40)])
def test_array_is_what_local_store_reads(tmp_path: pathlib.Path, shards: tuple[int, int] | None) -> None:
    values = numpy.arange(120 * 80).reshape(120, 80)
    array = zarr.create_array(AioStore(tmp_path), shape=values.shape, chunks=(10, 10), shards=shards, dtype=values.dtype)
    array[:] = values
    array[5:17, 3:60] = 7
    values[5:17, 3:60] = 7
    points = ([0, 119, 50], [79, 0, 33])
    for store in stores(tmp_path):
        opened = zarr.open_array(store, mode="r")
        assert numpy.array_equal(opened[:], values)
        assert numpy.array_equal(opened[3:77:5, 10:20], values[3:77:5, 10:20])
        assert numpy.array_equal(opened.vindex[points], values[points])


def test_process_that_used_it_ends_without_complaint(tmp_path: pathlib.Path) -> None:
    program = """
import sys, numpy, zarr
from trio_aio.integrations.zarr import AioStore
array = zarr.create_array(AioStore(sys.argv[1]), shape=(100,), chunks=(10,), dtype="i4")
array[:] = numpy.arange(100)
assert array[:].sum() == 4950
"""
    check([sys.executable, "-c", program, str(tmp_path)])


def test_missing_package_is_an_import_error_that_names_the_extra() -> None:
    program = "import sys; sys.modules['zarr.abc.store'] = None; import trio_aio.integrations.zarr"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert re.search(r"ImportError: .*pip install 'trio-aio\[zarr\]'", done.stderr)


@pytest.mark.parametrize("key", ["a/", "a/.", "./a", "g/", "g/.", "", ".", "a//", "g//b"])
def test_key_with_parts_that_name_nothing_is_as_with_local_store(tmp_path: pathlib.Path, key: str) -> None:
    prototype = default_buffer_prototype()

    def left(store: Any) -> list[str] | None:
        return sorted(os.listdir(store.root)) if store.root.exists() else None

    async def outcomes(store: Any) -> list[Any]:
        async def outcome(call: Coroutine[Any, Any, Any]) -> Any:
            try:
                result = await call
            except Exception as error:
                return type(error)
            return result.to_bytes() if hasattr(result, "to_bytes") else result

        await store.set("a", Buffer.from_bytes(b"value"))
        await store.set("g/b", Buffer.from_bytes(b"inner"))
        found = [
            await outcome(store.get(key, prototype)),
            await outcome(store.exists(key)),
            await outcome(store.set_if_not_exists(key, Buffer.from_bytes(b"new"))),
            await outcome(store.delete_dir(key)),
            left(store),
        ]
        await store.set("a", Buffer.from_bytes(b"value"))
        return [*found, await outcome(store.delete(key)), left(store)]

    async def main() -> None:
        assert await outcomes(AioStore(tmp_path / "ours")) == await outcomes(LocalStore(tmp_path / "theirs"))

    asyncio.run(main())

"""What an engine knows of devices and files, beyond the descriptors that are open."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from trio_aio._engine.block_map import BlockMap
from trio_aio._engine.durability import Durability
from trio_aio._engine.shared_file import SharedFile
from trio_aio._lanes.devices import DeviceRecords

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_aio._engine.descriptor import Descriptor

__all__ = ("KnownFiles",)

# Files that are remembered because they were written and not synced, although no descriptor of them is left.
MOST_KEPT = 256


class KnownFiles:
    """The records of devices, which last as long as the engine, and the shared files, which last as long as a descriptor of them."""

    def __init__(self, gather: Callable[..., None]) -> None:
        self._gather: Callable[..., None] = gather  # see `Order`
        self.devices: DeviceRecords = DeviceRecords()
        self._shared: WeakValueDictionary[tuple[int, int, bool], SharedFile] = WeakValueDictionary()
        # By device, inode number and birth: a file whose inode number is used again is another one.
        self._durability: dict[tuple[int, int, int], Durability] = {}

    def connect(self, descriptor: Descriptor) -> None:
        """Connect a descriptor with the records of its device, and with all other descriptors of its file."""
        find = self.devices.find
        descriptor.order.gather = self._gather
        direct = descriptor.direct
        descriptor.read_device = find(descriptor.device, direct=direct, writing=False, watched=descriptor.watched)
        descriptor.write_device = find(descriptor.device, direct=direct, writing=True)
        if descriptor.read_device.residency is not None:
            descriptor.residency = descriptor.read_device.residency
        # A block device is no file of the filesystem that lies on it.
        key = descriptor.device, descriptor.inode_number, stat.S_ISBLK(descriptor.mode)
        shared = self._shared.get(key)
        # The inode number of a file that was removed may be another one's. 0: not known.
        if shared is None or (shared.birth != descriptor.birth and shared.birth and descriptor.birth):
            shared = self._shared[key] = SharedFile(self._durability_of(descriptor), descriptor.birth)
        descriptor.shared_file = shared
        durability = shared.durability
        # One that the caller has passed may have been opened before a sync has failed.
        descriptor.known_failures = durability.failures if descriptor.opened else 0
        if descriptor.writable:
            durability.connect(descriptor)
        descriptor.order.gate = shared.gate
        if descriptor.direct:
            if shared.block_map is None:
                shared.block_map = BlockMap(descriptor.size)
            descriptor.block_map = shared.block_map

    def _durability_of(self, descriptor: Descriptor) -> Durability:
        key, kept = (descriptor.device, descriptor.inode_number, descriptor.birth), self._durability
        if len(kept) > MOST_KEPT:
            del kept[next((known for known, one in kept.items() if not one.error), next(iter(kept)))]
        return kept.get(key) or Durability(key, kept)

    def note_change(
        self, device: int, inode_number: int, start: int = 0, end: int = 0, *, cut: int | None = None, exact: bool = True
    ) -> None:
        """Note that a file was changed by a request that had no descriptor of it: cut off at `cut` first, or written from `start` to `end`.

        exact: it has written just these bytes, and not perhaps fewer.
        """
        shared = self._shared.get((device, inode_number, False))
        if shared is not None:
            shared.note_change()
            if cut is not None:
                shared.durability.note_truncated(cut)
            shared.durability.note_written(start, end, exact=exact)

    def note_failed_sync(self, device: int, inode_number: int, error: int, size: int) -> None:
        """Note that a request that had no descriptor of a file could not make it durable. size: of the file, bytes."""
        shared = self._shared.get((device, inode_number, False))
        if shared is not None:
            shared.durability.note_failed(error, size)

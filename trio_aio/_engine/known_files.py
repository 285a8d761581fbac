"""What an engine knows of devices and files, beyond the descriptors that are open."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from trio_aio._engine.block_map import BlockMap
from trio_aio._engine.shared_file import SharedFile
from trio_aio._lanes.devices import DeviceRecords

if TYPE_CHECKING:
    from trio_aio._engine.descriptor import Descriptor

__all__ = ("KnownFiles",)


class KnownFiles:
    """The records of devices, which last as long as the engine, and the shared files, which last as long as a descriptor of them."""

    def __init__(self) -> None:
        self.devices: DeviceRecords = DeviceRecords()
        self._shared: WeakValueDictionary[tuple[int, int], SharedFile] = WeakValueDictionary()

    def connect(self, descriptor: Descriptor) -> None:
        """Connect a descriptor with the records of its device, and with all other descriptors of its file."""
        find = self.devices.find
        descriptor.read_device = find(descriptor.device, direct=descriptor.direct, writing=False)
        descriptor.write_device = find(descriptor.device, direct=descriptor.direct, writing=True)
        key = descriptor.device, descriptor.inode_number
        shared = self._shared.get(key)
        if shared is None:
            shared = self._shared[key] = SharedFile()
        descriptor.shared_file = shared
        if descriptor.direct:
            descriptor.order.gate = shared.gate
            if shared.block_map is None:
                shared.block_map = BlockMap(descriptor.size)
            descriptor.block_map = shared.block_map

    def note_change(self, device: int, inode_number: int) -> None:
        """Note that a file was changed by a request that had no descriptor of it."""
        shared = self._shared.get((device, inode_number))
        if shared is not None:
            shared.note_change()

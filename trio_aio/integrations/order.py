"""Which of many calls are made one after the other: those that use the same file, if one of them changes it.

A file may have several names: through links to folders, through a link, or as hard links. So each path is known by the real path of its
folder, and by device and inode if it exists. Calls that have nothing in common with others may be made at the same time.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

import trio_aio
from trio_aio.integrations.batches import raise_first, together

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable, Sequence

__all__ = ("Known", "in_groups", "in_order", "known", "nested")


class Known(NamedTuple):
    """What is known of a path."""

    status: os.stat_result | None
    """None: it does not exist, or cannot be described."""
    names: tuple[Hashable, ...]
    """Two paths that share one of them are the same file."""


async def known(paths: Sequence[str]) -> list[Known]:
    """Return what is known of each path. Each folder is asked for once."""
    folders = list({os.path.dirname(path) for path in paths})
    real = dict(zip(folders, await together(trio_aio.os.path.realpath, [(folder,) for folder in folders]), strict=True))
    statuses = await together(trio_aio.os.stat, [(path,) for path in paths])
    missing = [path for path, status in zip(paths, statuses, strict=True) if isinstance(status, FileNotFoundError)]
    are_links = await together(trio_aio.os.path.islink, [(path,) for path in missing])
    links = {path for path, is_link in zip(missing, are_links, strict=True) if is_link is True}
    found = []
    for path, status in zip(paths, statuses, strict=True):
        folder, name = os.path.split(path)
        names: list[Hashable] = [(folder if isinstance(real[folder], Exception) else real[folder], name)]
        if not isinstance(status, Exception):
            names.append((status.st_dev, status.st_ino))
        elif path in links:
            names.append(os.path.split(await trio_aio.os.path.realpath(path)))
        found.append(Known(None if isinstance(status, Exception) else status, tuple(names)))
    return found


def in_groups(reads: Sequence[Sequence[Hashable]], writes: Sequence[Sequence[Hashable]]) -> list[list[int]]:
    """Return the indices of calls in groups. Those of a group depend on each other, and keep their order. reads, writes: what each uses."""
    users: dict[Hashable, list[int]] = {}
    for index, names in enumerate(zip(reads, writes, strict=True)):
        for name in {*names[0], *names[1]}:
            users.setdefault(name, []).append(index)
    leader = list(range(len(reads)))

    def first_of(index: int) -> int:
        while leader[index] != index:
            leader[index] = leader[leader[index]]
            index = leader[index]
        return index

    for name in {name for names in writes for name in names}:
        for index in users[name][1:]:
            one, other = first_of(users[name][0]), first_of(index)
            leader[max(one, other)] = min(one, other)
    groups: dict[int, list[int]] = {}
    for index in range(len(reads)):
        groups.setdefault(first_of(index), []).append(index)
    return list(groups.values())


async def in_order(function: Callable[..., Awaitable[Any]], calls: Sequence[tuple[Any, ...]], groups: Sequence[Sequence[int]]) -> None:
    """Make calls, those of a group one after the other. groups: their indices. The first error is raised, and no more are started."""

    async def run(group: Sequence[int]) -> None:
        for index in group:
            await function(*calls[index])

    raise_first(await together(run, [(group,) for group in groups], stop=True))


def nested(paths: Sequence[str]) -> list[list[int]]:
    """Return the indices of paths in groups: a path that is below another, or the same, is in its group."""
    all_paths = set(paths)
    above = []
    for path in paths:
        found, folder = [], os.path.dirname(path)
        while folder != path:
            if folder in all_paths:
                found.append(folder)
            path, folder = folder, os.path.dirname(folder)
        above.append(found)
    return in_groups(above, [[path] for path in paths])

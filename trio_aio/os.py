"""The functions of the ``os`` module that use names, asynchronous: ``await trio_aio.os.stat(path)``.

They have the names, parameters, results and errors of ``os``, and take ``context=None``. What only looks is answered inline if the kernel
has the name in memory; a worker serves the rest. ``trio_aio.os.path`` has those of ``os.path`` that ask the filesystem.
A call that raises Cancelled has changed no name: cancelled when a worker has started it, it completes and returns its result.
"""

from __future__ import annotations

from trio_aio._names import os_path as path
from trio_aio._names.listing import DirEntry, listdir, scandir
from trio_aio._names.os_calls import (
    access,
    chmod,
    chown,
    getcwd,
    getxattr,
    lchown,
    link,
    listxattr,
    lstat,
    makedirs,
    mkdir,
    mkfifo,
    mknod,
    readlink,
    remove,
    removedirs,
    removexattr,
    rename,
    renames,
    replace,
    rmdir,
    setxattr,
    stat,
    statvfs,
    symlink,
    sync_directory,
    truncate,
    unlink,
    utime,
)
from trio_aio._names.walk import walk

__all__ = (
    "DirEntry",
    "access",
    "chmod",
    "chown",
    "getcwd",
    "getxattr",
    "lchown",
    "link",
    "listdir",
    "listxattr",
    "lstat",
    "makedirs",
    "mkdir",
    "mkfifo",
    "mknod",
    "path",
    "readlink",
    "remove",
    "removedirs",
    "removexattr",
    "rename",
    "renames",
    "replace",
    "rmdir",
    "scandir",
    "setxattr",
    "stat",
    "statvfs",
    "symlink",
    "sync_directory",
    "truncate",
    "unlink",
    "utime",
    "walk",
)

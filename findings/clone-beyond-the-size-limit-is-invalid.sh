#!/bin/sh
# To clone a file that is larger than the process's limit on file sizes is "Invalid argument", not "File too large".
#
# Guess: with `ulimit -f`, all ways to make a file too large fail with EFBIG and SIGXFSZ, as write(2), ftruncate(2) and copy_file_range(2) do: the
#   last one copies up to the limit first. A clone (ioctl FICLONE, FICLONERANGE) cannot be partial, so it is EFBIG at once.
# Seen: Linux 6.18, xfs and btrfs. A clone that would cross the limit is EINVAL, without a signal, and the target stays empty. One that starts at
#   the limit is EFBIG with SIGXFSZ. ioctl_ficlone(2) gives EINVAL for ranges that are not aligned, and for filesystems that cannot clone.
# Why it matters: `cp --reflink=always` blames the filesystem. Programs that take EINVAL for "cannot clone here" copy the bytes instead, for minutes,
#   until they meet the limit.
#
# Needs root, Python >= 3.8, util-linux, xfsprogs and btrfs-progs. No package of any registry. Exit status 1 if the behaviour has changed.
set -eu

folder=$(mktemp -d)
trap 'umount "$folder/xfs" "$folder/btrfs" 2>/dev/null || true; rm -rf "$folder"' EXIT
for kind in xfs btrfs; do
    truncate -s 400M "$folder/$kind.image"
    "mkfs.$kind" -q "$folder/$kind.image"
    mkdir "$folder/$kind"
    mount -o loop "$folder/$kind.image" "$folder/$kind"
done

cat > "$folder/program.py" <<'PYTHON'
import errno
import fcntl
import os
import platform
import resource
import signal
import struct
import sys

MIB = 1 << 20
FICLONE, FICLONERANGE = 0x40049409, 0x4020940D
signals = []
signal.signal(signal.SIGXFSZ, lambda number, frame: signals.append(number))

CALLS = {  # each would make the target 2 MiB long or longer; the source has 4 MiB
    "write": lambda source, target: os.pwrite(target, bytes(2 * MIB), 0),
    "ftruncate": lambda source, target: os.ftruncate(target, 2 * MIB),
    "copy_file_range": lambda source, target: os.copy_file_range(source, target, 2 * MIB, 0, 0),
    "FICLONE": lambda source, target: fcntl.ioctl(target, FICLONE, source),
    "FICLONERANGE": lambda source, target: fcntl.ioctl(target, FICLONERANGE, struct.pack("qQQQ", source, 0, 2 * MIB, 0)),
    "FICLONERANGE at the limit": lambda source, target: fcntl.ioctl(target, FICLONERANGE, struct.pack("qQQQ", source, 0, MIB, MIB)),
}
EXPECTED = {  # the result, the size of the target then, and whether SIGXFSZ came
    "write": ("1048576", MIB, False),
    "ftruncate": ("EFBIG", 0, True),
    "copy_file_range": ("1048576", MIB, False),
    "FICLONE": ("EINVAL", 0, False),
    "FICLONERANGE": ("EINVAL", 0, False),
    "FICLONERANGE at the limit": ("EFBIG", 0, True),
}


def outcome(folder, call):
    path = f"{folder}/target"
    source, target = os.open(f"{folder}/source", os.O_RDONLY), os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    signals.clear()
    try:
        result = str(CALLS[call](source, target))
    except OSError as error:
        result = errno.errorcode[error.errno]
    size = os.fstat(target).st_size
    os.close(source)
    os.close(target)
    return result, size, bool(signals)


changed = False
print("Linux", platform.release())
for kind in ("xfs", "btrfs"):
    folder = f"{sys.argv[1]}/{kind}"
    with open(f"{folder}/source", "wb") as file:
        file.write(bytes(range(256)) * (4 * MIB // 256))
        file.flush()
        os.fsync(file.fileno())
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, resource.RLIM_INFINITY))
    for call in CALLS:
        got = outcome(folder, call)
        print(f"{kind:5} {call:26} result {got[0]:8} size {got[1]:8} SIGXFSZ {'yes' if got[2] else 'no'}")
        changed = changed or got != EXPECTED[call]
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
sys.exit(changed)
PYTHON
python3 "$folder/program.py" "$folder"

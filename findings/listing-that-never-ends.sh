#!/bin/sh
# On xfs, a loop over a directory that makes a new name there for each name that it gets does not end.
#
# Guess: readdir(3) may or may not return a name that was added after opendir(3). Filesystems bound that: a listing ends at the names that there
#   were, or at most after a second lot. btrfs was changed in 2023 for this reason.
# Seen: Linux 6.18, a directory of 5,000 names, and a hard link beside each name that is returned. btrfs and tmpfs return 5,000 names. ext4, which
#   sorts by a hash, returns about half of the new ones too. xfs, which adds at the end, was stopped after 100,000.
# Why it matters: "for each file here, make a copy with .bak behind its name" copies the copies, until the disk is full or a name is too long. It is
#   right on the machine of its author, where the filesystem is another one, and in a directory that fits into one call of getdents64(2).
#
# Needs root, Python >= 3.8, util-linux, e2fsprogs, xfsprogs and btrfs-progs. No package of any registry. Exit status 1 if the behaviour has changed.
set -eu

folder=$(mktemp -d)
trap 'umount "$folder/xfs" "$folder/btrfs" "$folder/ext4" "$folder/tmpfs" 2>/dev/null || true; rm -rf "$folder"' EXIT
for kind in xfs btrfs ext4; do
    truncate -s 400M "$folder/$kind.image"
    "mkfs.$kind" -q "$folder/$kind.image" > "$folder/output" 2>&1
    mkdir "$folder/$kind"
    mount -o loop "$folder/$kind.image" "$folder/$kind"
done
mkdir "$folder/tmpfs"
mount -t tmpfs -o size=64M tmpfs "$folder/tmpfs"

cat > "$folder/program.py" <<'PYTHON'
import os
import platform
import sys

NAMES, MOST = 5_000, 100_000
EXPECTED = {"btrfs": (NAMES, NAMES), "tmpfs": (NAMES, NAMES), "ext4": (NAMES + 1, 3 * NAMES), "xfs": (MOST, MOST)}

changed = False
print("Linux", platform.release())
for kind, (least, most) in EXPECTED.items():
    folder = f"{sys.argv[1]}/{kind}/names"
    os.mkdir(folder)
    for i in range(NAMES):
        open(f"{folder}/file {i}", "w").close()
    returned = 0
    with os.scandir(folder) as names:
        for name in names:
            os.link(name.path, f"{folder}/copy {returned}")
            returned += 1
            if returned == MOST:
                break
    print(f"{kind:5} returned {returned} names of a directory of {NAMES}", "and was stopped" if returned == MOST else "")
    changed = changed or not least <= returned <= most
sys.exit(changed)
PYTHON
python3 "$folder/program.py" "$folder"

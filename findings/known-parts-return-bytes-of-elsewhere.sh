#!/bin/sh
# A file of fsspec with the cache "parts" returns the bytes of another offset, without an error, if a read begins before a known part.
#
# Guess: the cache KnownPartsOfAFile knows some parts of a file. With strict=True a read that is not wholly inside one of them is a ValueError. So
#   its docstring says ("Whether to fetch reads that go beyond a known byte-range boundary"), and that a read which begins outside a known part is
#   never filled with zeros.
# Seen: fsspec 2026.9.0. With the bytes 100 to 199 known, `seek(50)` and `read(100)` return 50 bytes: those of the offsets 100 to 149. `tell()`
#   is then 100, where those bytes begin. The read is a ValueError only if it also ends behind the part. With two known parts, a read from
#   before the first into the second returns what there is of both, joined, as if nothing were missing between them. strict=True and
#   strict=False do the same.
# Why it matters: those who read the columns of a Parquet file, or the members of an archive, plan which parts they need. A mistake in the plan,
#   or a file that has changed, should be an error. Here it is wrong data of a plausible length. Only a reader that compares the length notices.
#
# Needs Python >= 3.10 and a package index for pip. Exit status 1 if the behaviour has changed.
set -eu

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

"${PYTHON:-python3}" -m venv "$folder/environment"
"$folder/environment/bin/pip" install --quiet --disable-pip-version-check fsspec==2026.9.0

cat > "$folder/program.py" <<'PYTHON'
import sys

import fsspec
from fsspec.spec import AbstractBufferedFile

CONTENT = bytes(range(240))
filesystem = fsspec.filesystem("memory")
filesystem.pipe("/file", CONTENT)


def read(parts, strict, offset, size):
    """Return the offsets of the bytes that a read returns, and where the cursor is then; or the name of the error."""
    known = {(start, end): CONTENT[start:end] for start, end in parts}
    file = AbstractBufferedFile(filesystem, "/file", "rb", cache_type="parts", cache_options={"data": known, "strict": strict})
    file.seek(offset)
    try:
        got = file.read(size)
    except ValueError:
        return "ValueError"
    return list(got), file.tell()


one, two = [(100, 200)], [(20, 40), (60, 80)]
expected = [
    ("inside the part", one, 150, 50, (list(range(150, 200)), 200)),
    ("wholly before the part", one, 0, 50, "ValueError"),
    ("begins before the part, and ends in it", one, 50, 100, (list(range(100, 150)), 100)),
    ("begins before the part, and ends with it", one, 50, 150, (list(range(100, 200)), 150)),
    ("begins before the part, and ends after it", one, 50, 160, "ValueError"),
    ("begins before the first of two parts, and ends in the second", two, 10, 60, ([*range(20, 40), *range(60, 70)], 40)),
]
print("fsspec", fsspec.__version__)
changed = False
for strict in (True, False):
    for name, parts, offset, size, wanted in expected:
        seen = read(parts, strict, offset, size)
        if seen == "ValueError":
            said = seen
        else:
            said = f"{len(seen[0])} bytes, the first is that of offset {seen[0][0]}, the cursor is at {seen[1]}"
        print(f"strict={strict}: known {parts}, seek({offset}), read({size}), {name}: {said}")
        changed = changed or seen != wanted
sys.exit(changed)
PYTHON
"$folder/environment/bin/python" "$folder/program.py"

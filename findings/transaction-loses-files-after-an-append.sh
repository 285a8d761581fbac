#!/bin/sh
# In a transaction of fsspec's LocalFileSystem, one file that is opened for appending loses all files that are opened after it.
#
# Guess: in `with fs.transaction:` a file opened with "ab" is put off like one opened with "wb". It changes when the transaction ends, and keeps
#   its old content if the body fails. So says the documentation: files are moved to their place at the end, or all of them are discarded.
# Seen: fsspec 2026.9.0. The append is written at once, inside the transaction, and stays when the body fails. At the end the transaction stops
#   at that file with AttributeError ('_io.BufferedWriter' object has no attribute 'temp'), which also takes the place of the body's own
#   exception. What was written to files opened before it is there; what was written to files opened after it is nowhere. The same happens
#   with "xb". A file opened with "r+b" is written at once too, and stays when the body fails, but breaks nothing.
# Why it matters: a program that adds a line to a log in the same transaction as its data loses data that was closed without an error. The
#   AttributeError does not say which file is meant, or that others are missing.
#
# Needs Python >= 3.10 and a package index for pip. Exit status 1 if the behaviour has changed.
set -eu

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

"${PYTHON:-python3}" -m venv "$folder/environment"
"$folder/environment/bin/pip" install --quiet --disable-pip-version-check fsspec==2026.9.0

cat > "$folder/program.py" <<'PYTHON'
import sys
from pathlib import Path

import fsspec

filesystem = fsspec.filesystem("file")


class Failed(Exception):
    pass


def run(folder, mode, fails):
    """Write three files in one transaction, the second of them with `mode`. Return what was seen."""
    folder.mkdir()
    changed = folder / "changed"
    if mode != "xb":
        changed.write_bytes(b"old ")
    error, inside = None, None
    try:
        with filesystem.transaction:
            for name, its_mode in (("before", "wb"), ("changed", mode), ("after", "wb")):
                with filesystem.open(str(folder / name), its_mode) as file:
                    file.write(b"new ")
            inside = changed.read_bytes() if changed.exists() else None
            if fails:
                raise Failed
    except Exception as raised:
        error = type(raised).__name__
    return inside, error, {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


root = Path(sys.argv[1])
expected = {
    ("ab", False): (b"old new ", "AttributeError", {"before": b"new ", "changed": b"old new "}),
    ("ab", True): (b"old new ", "AttributeError", {"changed": b"old new "}),
    ("xb", False): (b"new ", "AttributeError", {"before": b"new ", "changed": b"new "}),
    ("xb", True): (b"new ", "AttributeError", {"changed": b"new "}),
    ("r+b", False): (b"new ", None, {"after": b"new ", "before": b"new ", "changed": b"new "}),
    ("r+b", True): (b"new ", "Failed", {"changed": b"new "}),
    ("wb", False): (b"old ", None, {"after": b"new ", "before": b"new ", "changed": b"new "}),
    ("wb", True): (b"old ", "Failed", {"changed": b"old "}),
}
print("fsspec", fsspec.__version__)
changed = False
for number, ((mode, fails), wanted) in enumerate(expected.items()):
    inside, error, files = seen = run(root / str(number), mode, fails)
    print(f"{mode:4}", "the body fails" if fails else "all goes well", "inside:", inside, "error:", error, "at the end:", files)
    changed = changed or seen != wanted
sys.exit(changed)
PYTHON
"$folder/environment/bin/python" "$folder/program.py" "$folder"

#!/bin/sh
# obstore's LocalStore: each copy after the first leaves a file that no listing shows, and after a copy a rename does not remove the old name.
#
# Guess: `copy(store, "a", "b")` replaces b, as its documentation says, so a second one changes nothing: the folder holds a and b. Then
#   `rename(store, "a", "b")` leaves b alone. When all objects are deleted, the folder is empty. MemoryStore does so.
# Seen: obstore 0.12.1. LocalStore copies by a hard link "b#0", and renames that to b. But rename(2) of two names of one file does nothing, and
#   succeeds. So the second copy leaves b#0, the third b#1 and so on. After `rename(store, "a", "b")`, a is still there. `list` hides names that end
#   in "#" and digits, and `get` and `delete` refuse them. When all objects are deleted, the bytes are still on the disk.
#   A copy of an object onto itself does the same at once. An object that was put anew is another file, and is copied and renamed as expected.
# Why it matters: a job that copies "current" to "latest" each hour, changed or not, adds a hidden name each time, and hidden names keep contents that
#   were replaced. The disk fills, and the store shows nothing that could be deleted. And a move that leaves its source lets the next worker find
#   the same entry again.
#
# Needs Python >= 3.10 and a package index for pip. Exit status 1 if the behaviour has changed.
set -eu

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

"${PYTHON:-python3}" -m venv "$folder/environment"
"$folder/environment/bin/pip" install --quiet --disable-pip-version-check obstore==0.12.1

cat > "$folder/program.py" <<'PYTHON'
import os
import sys
from importlib.metadata import version

import obstore
from obstore.store import LocalStore, MemoryStore

folder = sys.argv[1]
local, memory = LocalStore(folder, mkdir=True), MemoryStore()
changed = False


def check(step, in_folder, in_local, in_memory):
    global changed
    seen = [
        sorted(os.listdir(folder)),
        sorted(entry["path"] for entry in obstore.list(local).collect()),
        sorted(entry["path"] for entry in obstore.list(memory).collect()),
    ]
    print(f"{step}: the folder has {seen[0]}; LocalStore lists {seen[1]}, MemoryStore {seen[2]}")
    changed = changed or seen != [in_folder, in_local, in_memory]


def both(function, *arguments, **options):
    for store in (local, memory):
        function(store, *arguments, **options)


print("obstore", version("obstore"))
both(obstore.put, "a", b"x" * 1_000_000)
both(obstore.copy, "a", "b")
check("the first copy of a to b", ["a", "b"], ["a", "b"], ["a", "b"])
both(obstore.copy, "a", "b")
check("the second", ["a", "b", "b#0"], ["a", "b"], ["a", "b"])
both(obstore.copy, "a", "b")
check("the third", ["a", "b", "b#0", "b#1"], ["a", "b"], ["a", "b"])
both(obstore.put, "new", b"y")
both(obstore.copy, "new", "b")
both(obstore.copy, "a", "b")
check("new is copied to b, then a to b again", ["a", "b", "b#0", "b#1", "new"], ["a", "b", "new"], ["a", "b", "new"])
both(obstore.delete, "new")
both(obstore.rename, "a", "b")
check("a is renamed to b", ["a", "b", "b#0", "b#1"], ["a", "b"], ["b"])
both(obstore.put, "b", b"new")
both(obstore.rename, "b", "c")
check("b is put anew, and renamed to c", ["a", "b#0", "b#1", "c"], ["a", "c"], ["c"])
both(obstore.copy, "c", "c")
check("c is copied onto itself", ["a", "b#0", "b#1", "c", "c#0"], ["a", "c"], ["c"])
obstore.delete(local, ["a", "c"])
obstore.delete(memory, "c")
check("all objects are deleted", ["b#0", "b#1", "c#0"], [], [])
left = os.stat(os.path.join(folder, "b#0"))
print(f"b#0 has {left.st_size} bytes and {left.st_nlink} names")
changed = changed or (left.st_size, left.st_nlink) != (1_000_000, 2)
for name, call in (("get", obstore.get), ("delete", obstore.delete)):
    try:
        call(local, "b#0")
        print(f"{name}: b#0 can be reached")
        changed = True
    except Exception as error:
        print(f"{name} of b#0: {type(error).__name__}")
sys.exit(changed)
PYTHON
"$folder/environment/bin/python" "$folder/program.py" "$folder/store"

#!/bin/sh
# An array that was made anew over an old one, through zarr's CacheStore, still has the values of the old one.
#
# Guess: the cache notices each change that is made through it. `create_array(..., overwrite=True)` deletes the old array, so the new one has only
#   the fill value, and `del group["x"]` deletes the array. Only changes that bypass the cache can make it stale.
# Seen: zarr 3.4.2, with MemoryStore and LocalStore as the source. Both calls delete by `delete_dir`, which CacheStore hands to its source without
#   looking. Values that were cached stay: the new array returns the old values where it should have the fill value, although the source holds
#   nothing. Setting one item then writes the chunk's other old values into the source. A deleted array is still a member of its group when it is
#   asked for by name, and cannot be created again (ContainsArrayError).
# Why it matters: the second run of a job that writes only a part of its array mixes two runs, in the store, for all readers. Nothing fails.
#
# Needs Python >= 3.12 and a package index for pip. Exit status 1 if the behaviour has changed.
set -eu

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

"${PYTHON:-python3}" -m venv "$folder/environment"
"$folder/environment/bin/pip" install --quiet --disable-pip-version-check zarr==3.4.2

cat > "$folder/program.py" <<'PYTHON'
import sys
import tempfile

import zarr
from zarr.experimental.cache_store import CacheStore
from zarr.storage import LocalStore, MemoryStore

SHAPE = {"shape": 8, "chunks": 4, "dtype": "i4", "fill_value": 0}


def run(source, cached):
    """Overwrite an array, set an item of the new one, delete another array and create it again. Return what was seen."""
    store = CacheStore(source, cache_store=MemoryStore()) if cached else source
    group = zarr.create_group(store)
    group.create_array("x", **SHAPE)[:] = 5
    array = group.create_array("x", overwrite=True, **SHAPE)
    seen = {"the new array": array[:].tolist()}
    array[0] = 1
    seen["the source after x[0] = 1"] = zarr.open_group(source)["x"][:].tolist()

    group.create_array("y", **SHAPE)[:] = 6
    del group["y"]
    seen["y is there after del"] = "y" in group
    try:
        group.create_array("y", **SHAPE)
        seen["y is created again"] = True
    except zarr.errors.ContainsArrayError:
        seen["y is created again"] = False
    return seen


right = {
    "the new array": [0] * 8,
    "the source after x[0] = 1": [1] + [0] * 7,
    "y is there after del": False,
    "y is created again": True,
}
stale = {
    "the new array": [5] * 8,
    "the source after x[0] = 1": [1, 5, 5, 5, 0, 0, 0, 0],
    "y is there after del": True,
    "y is created again": False,
}
print("zarr", zarr.__version__)
changed = False
for kind in (MemoryStore, LocalStore):
    for cached in (False, True):
        source = MemoryStore() if kind is MemoryStore else LocalStore(tempfile.mkdtemp(dir=sys.argv[1]))
        seen = run(source, cached)
        print(f"{kind.__name__}{' behind CacheStore' if cached else ''}:")
        for name, value in seen.items():
            print(f"    {name}: {value}")
        changed = changed or seen != (stale if cached else right)
sys.exit(changed)
PYTHON
"$folder/environment/bin/python" "$folder/program.py" "$folder"

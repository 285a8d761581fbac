#!/bin/sh
# Two handles of one zarr array, used one after the other: setting an attribute through the second takes back what the first has appended.
#
# Guess: `array.attrs["unit"] = "K"` changes that attribute ("will be merged with existing attributes", says `update_attributes`), and `append` adds
#   behind what the array has. The calls come one after the other, in one process, so each sees what the one before it has stored.
# Seen: zarr 3.4.2, LocalStore and MemoryStore alike. A handle keeps the metadata that it was opened with and never reads them again. Each change
#   writes all of them back. So after `first.append` an attribute set through `second` gives the array its old shape (the new rows are in the
#   store, and out of reach), attributes set through `first` are gone, and `second.append` writes over the rows of `first.append`. No error, no
#   warning.
# Why it matters: a writer that appends, and a part of the same program that annotates, need no thread and no race to lose data: it is enough that
#   both opened the array before. The rows come back if someone resizes the array by hand.
#
# Needs Python >= 3.12 and a package index for pip. Exit status 1 if the behaviour has changed.
set -eu

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

"${PYTHON:-python3}" -m venv "$folder/environment"
"$folder/environment/bin/pip" install --quiet --disable-pip-version-check zarr==3.4.2

cat > "$folder/program.py" <<'PYTHON'
import sys

import zarr
from zarr.storage import LocalStore, MemoryStore

folder = sys.argv[1]


def two_handles(store):
    first = zarr.create_array(store, shape=2, chunks=2, dtype="i4", overwrite=True)
    first[:] = 1
    return first, zarr.open_array(store)


def attribute_after_append(store):
    first, second = two_handles(store)
    first.append([2, 2])
    before = zarr.open_array(store)[:].tolist()
    second.attrs["unit"] = "K"
    after = zarr.open_array(store)
    return before, after[:].tolist()


def attribute_after_attribute(store):
    first, second = two_handles(store)
    first.attrs["sensor"] = 7
    second.attrs["unit"] = "K"
    return dict(zarr.open_array(store).attrs)


def append_after_append(store):
    first, second = two_handles(store)
    first.append([2, 2])
    second.append([3, 3])
    return zarr.open_array(store)[:].tolist()


expected = {
    attribute_after_append: ([1, 1, 2, 2], [1, 1]),
    attribute_after_attribute: {"unit": "K"},
    append_after_append: [1, 1, 3, 3],
}
changed = False
print("zarr", zarr.__version__)
for name, store in (("LocalStore", LocalStore(f"{folder}/array")), ("MemoryStore", MemoryStore())):
    for scenario, wanted in expected.items():
        got = scenario(store)
        print(f"{name:11} {scenario.__name__}: {got}")
        changed = changed or got != wanted
sys.exit(changed)
PYTHON
"$folder/environment/bin/python" "$folder/program.py" "$folder"

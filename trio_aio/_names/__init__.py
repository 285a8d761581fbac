"""Names: paths, listings, trees. Below `_dropin`, above `_files`."""

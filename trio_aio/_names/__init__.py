"""Names: paths, directories, listings, trees, temporary files."""

"""The interfaces of trio and anyio, on the files of this package."""

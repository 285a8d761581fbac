"""Other people's interfaces to files, on trio_aio: `fsspec`, `zarr`, `starlette`.

Each module serves one library and needs its package, which an extra of trio_aio's installs. The modules use the public interface only, as
a user's program would, and nothing in trio_aio imports them.
"""

from __future__ import annotations

__all__ = ("missing",)


def missing(module: str, error: ImportError) -> ImportError:
    """Return the error that says which extra has the package that a module needs."""
    return ImportError(
        f"trio_aio.integrations.{module} needs a package that is not installed ({error}): pip install 'trio-aio[{module}]'",
        name=error.name,
        path=error.path,
    )

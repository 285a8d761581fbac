from collections.abc import Callable
from typing import Any

from fsspec.spec import AbstractFileSystem

class AsyncFileSystem(AbstractFileSystem):
    _loop: Any
    _pid: int
    async def _cat(
        self, path: Any, recursive: bool = False, on_error: str = "raise", batch_size: int | None = None, **kwargs: Any
    ) -> Any: ...
    async def _cat_ranges(
        self,
        paths: list[str],
        starts: Any,
        ends: Any,
        max_gap: int | None = None,
        batch_size: int | None = None,
        on_error: str = "return",
        **kwargs: Any,
    ) -> list[Any]: ...
    async def _expand_path(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> list[str]: ...

def sync(loop: Any, func: Callable[..., Any], *args: Any, timeout: float | None = None, **kwargs: Any) -> Any: ...

"""Layers: how long the way is from what users call down to the C code. import-linter checks the rest (pyproject.toml)."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import trio_aio

PACKAGE = Path(trio_aio.__file__).parent
MOST_LEVELS = 12


def module_names() -> dict[str, Path]:
    """Return the package's modules by their dotted names."""
    names = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imports_of(path: Path, modules: dict[str, Path]) -> set[str]:
    """Return the modules of the package that a file imports, for its annotations too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module in modules:
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & modules.keys()
            found |= inner or {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & modules.keys()
    return found - {"trio_aio"}


def test_positional_reads_are_at_most_twelve_levels_above_the_native_code() -> None:
    modules = module_names()

    @cache
    def longest(name: str) -> tuple[str, ...]:
        below = (longest(imported) for imported in imports_of(modules[name], modules) - {name})
        return (name, *max(below, key=len, default=()))

    chain = longest("trio_aio._files.positional")
    assert len(chain) <= MOST_LEVELS, "\n".join(chain)
    assert "trio_aio._native" in {imported for name in chain for imported in imports_of(modules[name], modules)}

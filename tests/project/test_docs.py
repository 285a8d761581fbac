"""README, CONTRIBUTING and docs/ say what is true: their programs run, signatures are the code's, and files and links exist."""

from __future__ import annotations

import ast
import enum
import functools
import importlib.util
import inspect
import itertools
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import trio

import trio_aio
import trio_aio.lowlevel
import trio_aio.testing

if TYPE_CHECKING:
    import types
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "trio_aio"
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
CALLS = DOCS / "calls.md"

# Constructed by users. The others are made by the package, and their constructors are not public.
CONSTRUCTED = {"AIOContext", "FaultyContext", "FileReadStream", "FileWriteStream", "IOCB"}
MADE_BY_COMMANDS = {".venv/", "dist/"}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


# ---- length, links, files, commands


def test_readme_has_at_most_130_lines() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("https://"):
            continue
        target, _, anchor = link.partition("#")
        file = page.parent / target if target else page
        if not file.is_file() or (anchor and anchor not in anchors(file)):
            broken.append(link)
    assert not broken


def test_every_page_is_linked_from_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not [page.name for page in DOCS.glob("*.md") if f"(docs/{page.name})" not in text]


def named_paths(page: Path) -> list[str]:
    """Return the files and folders that a page names."""
    text = page.read_text(encoding="utf-8")
    files = re.findall(r"(?<![\w/.-])(?:\.?[\w-]+/)*[\w-]+(?:\.diagram|\.cdef|\.csrc)?\.(?:pyi|py|c|h|md|txt|svg|toml)\b", text)
    folders = re.findall(r"`((?:\.?[\w-]+/)+)`", text)
    return sorted({*files, *folders} - MADE_BY_COMMANDS)


NAMING = [DOCS / "architecture.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.diagram.txt"))]


@pytest.mark.parametrize("page", NAMING, ids=name_of)
def test_path_named_in_a_page_exists(page: Path) -> None:
    def exists(path: str) -> bool:
        places = (ROOT / path, PACKAGE / path, page.parent / path)
        return any(place.is_dir() if path.endswith("/") else place.is_file() for place in places)

    assert not [path for path in named_paths(page) if not exists(path)]


def test_named_paths_finds_files_and_folders(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("`_lanes/kernel.py` and `_lanes/`, docs/draw.py, `.ci/run`, `dist/`, https://example.org/a.md", encoding="utf-8")
    assert named_paths(page) == ["_lanes/", "_lanes/kernel.py", "docs/draw.py"]


def test_architecture_names_every_folder_and_every_module_of_the_package() -> None:
    named = named_paths(DOCS / "architecture.md")
    folders = [f"{part.name}/" for part in PACKAGE.iterdir() if part.is_dir() and part.name != "__pycache__"]
    files = [path for path in PACKAGE.rglob("*.*") if path.suffix in (".py", ".pyi", ".c", ".h", ".txt")]
    modules = [str(path.relative_to(PACKAGE)) for path in files if path.name != "__init__.py"]
    missing = {*folders, *modules} - {*named}
    assert not missing, f"add a row to the tables of docs/architecture.md: {sorted(missing)}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_make_command_in_a_page_is_a_target(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    commands = set(re.findall(r"(?:^|`)(?:\w+=\w+ )?make ([a-z-]+)", page.read_text(encoding="utf-8"), re.MULTILINE))
    assert not commands - targets


# ---- programs


class Block(NamedTuple):
    """A block of Python in a page."""

    page: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{name_of(self.page)}:{self.line}"

    def compile(self) -> types.CodeType:
        """Compile it; `await` may stand outside of a function. Lines are numbered as in the page."""
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        code: types.CodeType = compile("\n" * self.line + self.text, str(self.page), "exec", flags=flags, dont_inherit=True)
        return code

    @property
    def is_program(self) -> bool:
        """Whether it starts an event loop itself."""
        return re.search(r"^(trio|asyncio|anyio)\.run\(", self.text, re.MULTILINE) is not None


def blocks() -> Iterator[Block]:
    """Return the blocks of Python of all pages."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            yield Block(page, text.count("\n", 0, match.start()) + 1, match[1])


BLOCKS = list(blocks())


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_python_block_compiles(block: Block) -> None:
    block.compile()


@pytest.fixture
def folder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder of a block, with the files that the pages speak of; on a disk if the block needs direct I/O."""
    path: Path = request.getfixturevalue("disk" if "direct=True" in request.getfixturevalue("block").text else "tmp_path")
    (path / "data.bin").write_bytes(bytes(range(256)) * 4096)
    (path / "log.txt").write_text("a line\n" * 1000, encoding="utf-8")
    monkeypatch.chdir(path)
    text = request.getfixturevalue("block").text
    if "fsspec" in text:
        request.getfixturevalue("fsspec_loop")
    if "zarr" in text:
        request.getfixturevalue("zarr_loop")
    return path


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.is_program], ids=str)
def test_program_in_a_page_runs(block: Block, folder: Path) -> None:
    exec(block.compile(), {"__name__": "__main__"})


@pytest.mark.parametrize("block", [block for block in BLOCKS if not block.is_program and block.page != CALLS], ids=str)
def test_fragment_in_a_page_runs_among_what_it_names(block: Block, folder: Path) -> None:
    async def main() -> None:
        reader, writer = os.pipe()
        os.write(writer, b"ready")
        async with trio_aio.open_aio("data.bin", "r+b") as file:
            names: dict[str, Any] = {name: getattr(trio_aio, name) for name in trio_aio.__all__}
            names |= {"trio": trio, "select": __import__("select"), "file": file, "path": folder / "data.bin", "fd": reader}
            names |= {"offsets": [0, 8192], "array": bytearray(8192), "header": b"header", "block": bytes(4096), "data": b"data"}
            result = eval(block.compile(), names)
            if result is not None:
                await result
        os.close(reader)
        os.close(writer)

    trio.run(main)


# ---- signatures


Function = (ast.FunctionDef, ast.AsyncFunctionDef)


def documented() -> dict[str, ast.AST]:
    """Return what docs/calls.md has: definitions by name, and those in a class by "Class.name"."""
    found: dict[str, ast.AST] = {}
    for block in BLOCKS:
        if block.page != CALLS:
            continue
        for node in ast.parse(block.text).body:
            if isinstance(node, Function):
                found[node.name] = node
            assert isinstance(node, (*Function, ast.ClassDef))
            for part in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(part, Function):
                    found[f"{node.name}.{part.name}"] = part
                elif isinstance(part, ast.AnnAssign):
                    found[f"{node.name}.{ast.unparse(part.target)}"] = part.annotation
                elif isinstance(part, ast.Assign):
                    found[f"{node.name}.{ast.unparse(part.targets[0])}"] = part.value
    return found


DOCUMENTED = documented()


class Written:
    """Something whose repr is its source."""

    def __init__(self, source: object) -> None:
        self._source: str = str(source)

    def __repr__(self) -> str:
        return self._source


def annotation_source(annotation: Any) -> str:
    text = getattr(annotation, "__forward_arg__", annotation)
    return text if isinstance(text, str) else inspect.formatannotation(annotation)


def function_source(name: str, function: Callable[..., Any]) -> str:
    """Return the definition that `inspect.signature` stands for."""
    signature = inspect.signature(function)
    parameters = []
    for parameter in signature.parameters.values():
        if isinstance(parameter.default, enum.Enum):
            parameter = parameter.replace(default=Written(f"{type(parameter.default).__name__}({parameter.default.value})"))
        if parameter.annotation is not parameter.empty:
            parameter = parameter.replace(annotation=Written(annotation_source(parameter.annotation)))
        parameters.append(parameter)
    result = annotation_source(signature.return_annotation)
    plain = signature.replace(parameters=parameters, return_annotation=signature.empty)
    return f"{'async ' * inspect.iscoroutinefunction(function)}def {name}{plain} -> {result}: ..."


def unparsed(source: str | ast.AST) -> str:
    """Return Python as `ast.unparse` writes it, without decorators."""
    node = ast.parse(source).body[0] if isinstance(source, str) else source
    if isinstance(node, Function):
        node.decorator_list = []
    return ast.unparse(node)


PUBLIC = {name: getattr(module, name) for module in (trio_aio, trio_aio.testing, trio_aio.lowlevel) for name in module.__all__}
CLASSES = {name: thing for name, thing in PUBLIC.items() if inspect.isclass(thing)}


def members(cls: type) -> dict[str, str]:
    """Return the source of each public member that a class has from this package, but not from another public class."""
    found = {}
    others = [other for other in CLASSES.values() if other is not cls and issubclass(cls, other)]
    bases = [
        base for base in cls.__mro__ if base.__module__.startswith("trio_aio") and not any(issubclass(other, base) for other in others)
    ]
    for base in bases:
        annotations = inspect.get_annotations(base)
        for name in itertools.chain(vars(base), annotations):
            thing = inspect.getattr_static(cls, name, None)
            if name in found or name.startswith("_"):
                continue
            if name not in annotations and not hasattr(cls, name):  # an attribute that exists only to say what to use instead
                continue
            if name in annotations:
                found[name] = annotation_source(annotations[name])
            elif isinstance(thing, enum.Enum):
                found[name] = str(thing.value)
            elif isinstance(thing, (property, functools.cached_property)):
                getter = thing.fget if isinstance(thing, property) else thing.func
                found[name] = annotation_source(inspect.signature(getter).return_annotation)  # type: ignore[arg-type]
            else:
                found[name] = function_source(name, getattr(thing, "__func__", thing))
    return found


def signatures(name: str) -> dict[str, str]:
    """Return the source of what docs/calls.md should have of a public name: itself, or the members of a class."""
    thing = PUBLIC[name]
    if inspect.isfunction(thing):
        return {name: function_source(name, thing)}
    if not inspect.isclass(thing) or thing is trio_aio.lowlevel.IOCBCommand:
        return {}
    found = {f"{name}.{member}": source for member, source in members(thing).items()}
    if name in CONSTRUCTED:
        found[f"{name}.__init__"] = function_source("__init__", thing.__init__)
    return found


@pytest.mark.parametrize("name", PUBLIC)
def test_calls_page_has_the_signatures(name: str) -> None:
    wanted = {name: unparsed(source) for name, source in signatures(name).items()}
    assert {part: unparsed(node) for part, node in DOCUMENTED.items() if part.partition(".")[0] == name} == wanted


@pytest.mark.parametrize("name", PUBLIC)
def test_calls_page_names_everything_public(name: str) -> None:
    assert re.search(rf"\b{name}\b", CALLS.read_text(encoding="utf-8"))


# ---- pictures


def load_draw() -> Any:
    spec = importlib.util.spec_from_file_location("draw", DOCS / "draw.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


draw = load_draw()


def test_every_picture_has_a_description() -> None:
    assert sorted(map(draw.picture_of, draw.descriptions())) == sorted(DOCS.glob("*.svg")) != []


@pytest.mark.parametrize("description", draw.descriptions(), ids=name_of)
def test_picture_is_what_its_description_gives(description: Path) -> None:
    assert draw.picture_of(description).read_text(encoding="utf-8") == draw.draw(description), "run: python docs/draw.py"


@pytest.mark.parametrize(
    ("commands", "message"),
    [
        ('box a 0 0 9 4 "a"\nbox b 5 2 9 4 "b"', "line 2: the boxes 'b' and 'a' overlap"),
        ('box a 0 0 5 4 "a long title"', "line 1: 'a long title' does not fit the width of the box 'a'"),
        ('box a 0 0 9 4 "a" "b" "c"', "line 1: 3 lines do not fit the height of the box 'a'"),
        ('box a 0 0 9 4 "a"\n\narrow a.e b.w', "line 3: no box is called 'b'"),
        ("circle 1 2", "line 1: unknown command 'circle'"),
    ],
)
def test_draw_of_a_wrong_description_names_the_line(tmp_path: Path, commands: str, message: str) -> None:
    description = tmp_path / "wrong.diagram.txt"
    description.write_text(commands, encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(message)):
        draw.draw(description)


def test_draw_of_an_arrow_across_a_box_is_refused(tmp_path: Path) -> None:
    description = tmp_path / "wrong.diagram.txt"
    row = 'box a 0 0 5 4 "a"\nbox b 10 0 5 4 "b"\nbox c 20 0 5 4 "c"\n'
    description.write_text(f"canvas 30 10\n{row}arrow a.e c.w", encoding="utf-8")
    with pytest.raises(ValueError, match=r"the arrow from a\.e to c\.w crosses the box 'b'"):
        draw.draw(description)

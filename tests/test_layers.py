"""Imports go downward only, in the order that the package's own docstring states; heavy packages stay out of the door.

Everything is read from the syntax tree, so imports inside functions count too, and nothing is imported.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import metier

PACKAGE = Path(metier.__file__).parent
HEAVY = {"torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors", "scipy", "matplotlib", "numpy"}


def layers() -> list[list[str]]:
    """The rooms of each layer, the highest first."""
    text = (metier.__doc__ or "").split("Layers, imports only ever pointing right:", 1)[1]
    return [[room.strip() for room in layer.split("|")] for layer in " ".join(text.split()).split(">")]


HEIGHT = {room: height for height, layer in enumerate(reversed(layers())) for room in layer}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported(node: ast.AST, path: Path) -> Iterator[str]:
    """Dotted names that one import statement names; `from metier import x` gives `metier.x`."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        if node.level:
            parts = ("metier", *path.relative_to(PACKAGE).parts[:-1])
            base = ".".join(parts[: len(parts) - node.level + 1] + ((node.module,) if node.module else ()))
        else:
            base = node.module or ""
        if base == "metier":
            yield from (f"metier.{alias.name}" for alias in node.names)
        else:
            yield base


def rooms_used(tree: ast.Module, path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        for name in imported(node, path):
            parts = name.split(".")
            if parts[0] == "metier" and len(parts) > 1 and not parts[1].startswith("__"):
                yield getattr(node, "lineno", 0), parts[1]


def run_at_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run when the module is imported: not those in functions, nor those for the type checker alone."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from run_at_import(node.orelse)
            continue
        yield node
        for block in ("body", "orelse", "finalbody"):
            yield from run_at_import(getattr(node, block, []))
        for handler in getattr(node, "handlers", []):
            yield from run_at_import(handler.body)


def offences(path: Path, tree: ast.Module) -> list[str]:
    room = room_of(path)
    if room in ("__init__", "__main__"):
        return []
    found = []
    for line, other in rooms_used(tree, path):
        if other != room and HEIGHT.get(other, 99) >= HEIGHT[room]:
            found.append(f"{path.relative_to(PACKAGE)}:{line}: {room} imports {other}")
    return found


def test_the_docstring_names_the_layers():
    assert layers()[:2] == [["api"], ["cli"]]
    assert layers()[-1] == ["core"]
    assert ["report", "serve", "scale", "track"] in layers()


def test_every_room_stands_in_the_layers():
    rooms = {room_of(path) for path in modules()} - {"__init__", "__main__"}
    assert rooms <= HEIGHT.keys()


def test_imports_go_downward_only():
    assert [offence for path in modules() for offence in offences(path, parse(path))] == []


@pytest.mark.parametrize(
    ("place", "code", "caught"),
    [
        ("train/loop.py", "from metier.core.stage import Stage", False),
        ("train/loop.py", "from metier.train import batches", False),
        ("train/loop.py", "from metier import __version__", False),
        ("train/loop.py", "def f():\n    from metier.data import split", True),
        ("train/loop.py", "from ..data import split", True),
        ("core/stage.py", "import metier.text.chat", True),
        ("pipeline.py", "from metier import report", True),
        ("report/page.py", "from metier import pipeline", False),
    ],
)
def test_the_test_sees_what_it_should(place: str, code: str, caught: bool):
    assert bool(offences(PACKAGE / place, ast.parse(code))) is caught


def from_pretrained_calls(tree: ast.Module) -> list[int]:
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute))
    return [node.lineno for node in calls if node.func.attr == "from_pretrained"]  # type: ignore[union-attr]


def test_models_are_read_in_one_place():
    allowed = PACKAGE / "models" / "load.py"
    found = {str(p.relative_to(PACKAGE)): from_pretrained_calls(parse(p)) for p in modules() if p != allowed}
    assert {place: lines for place, lines in found.items() if lines} == {}


def light_modules() -> list[Path]:
    """What `metier --help` and `metier plan` may import: these stay free of heavy packages."""
    rooms = ("core", "api", "cli", "stages", "recipe", "pipeline", "text")
    return [p for p in modules() if p.name in ("stage.py", "builtin.py") or room_of(p) in rooms]


def heavy_at_import(tree: ast.Module, path: Path) -> set[str]:
    names = (name for node in run_at_import(tree.body) for name in imported(node, path))
    return {name.split(".")[0] for name in names} & HEAVY


def test_the_light_modules_import_nothing_heavy():
    found = {str(p.relative_to(PACKAGE)): heavy_at_import(parse(p), p) for p in light_modules()}
    assert {place: names for place, names in found.items() if names} == {}


def test_heavy_imports_are_seen_where_they_run():
    code = (
        "if TYPE_CHECKING:\n    import numpy\ndef f():\n    import scipy\ntry:\n    import torch.nn\nfinally:\n    pass"
    )
    assert heavy_at_import(ast.parse(code), PACKAGE / "core" / "x.py") == {"torch"}


def test_no_two_test_files_have_the_same_name():
    """pytest imports them by name: of two that share one, it refuses the second."""
    tests = Path(__file__).parent
    names = [path.name for path in tests.rglob("test_*.py")]
    assert sorted({name for name in names if names.count(name) > 1}) == []

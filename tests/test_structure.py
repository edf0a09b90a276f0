"""The structure of the package: imports point one way, and files and functions stay small enough to be read at once."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "sb3_agd"
# Each room may import from those before it only
ROOMS = ["world_model", "experience", "checkpoint", "imagination", "replication", "agdppo", "diagnostics", "zoo", "hub"]
FILES = sorted(PACKAGE.rglob("*.py"))


def name(file: Path) -> str:
    """Dotted name of a module."""
    parts = ("sb3_agd", *file.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(file: Path) -> Iterator[str]:
    """Modules of the package that a file imports, also within functions. What only type checkers import is left out."""
    tree = ast.parse(file.read_text())
    tree.body = [node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("sb3_agd"))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sb3_agd"):
            modules = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from modules & MODULES.keys() or {str(node.module)}


MODULES = {name(file): file for file in FILES}


def room(module: str) -> str | None:
    """The room of a module, None for those of the package itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and (PACKAGE / parts[1]).is_dir() else None


def lines_of_code(function: ast.FunctionDef | ast.AsyncFunctionDef, source: list[str]) -> int:
    """Lines of the body, without the docstring, comments and blank lines."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    lines = [source[line - 1].strip() for node in body for line in range(node.lineno, (node.end_lineno or 0) + 1)]
    return sum(bool(line) and not line.startswith("#") for line in lines)


def test_every_folder_is_a_room() -> None:
    assert {room(module) for module in MODULES} == {None, *ROOMS}


@pytest.mark.parametrize("module", [module for module in MODULES if room(module)])
def test_a_room_imports_only_from_itself_and_the_rooms_before_it(module: str) -> None:
    allowed = ROOMS[: ROOMS.index(str(room(module))) + 1]
    assert [other for other in imports(MODULES[module]) if room(other) is not None and room(other) not in allowed] == []


def test_modules_do_not_import_one_another_in_circles() -> None:
    # A package's `__init__` is loaded before its modules, so only imports of modules can be circular
    graph = {module: set(imports(file)) for module, file in MODULES.items() if file.name != "__init__.py"}
    finished: set[str] = set()

    def follow(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in finished:
            for other in graph.get(module, ()):
                follow(other, (*path, module))
            finished.add(module)

    for module in graph:
        follow(module, ())


def test_the_world_model_needs_neither_sb3_nor_gymnasium() -> None:
    for file in (PACKAGE / "world_model").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not any(module.split(".")[0] in ("stable_baselines3", "gymnasium") for module in modules), file


@pytest.mark.parametrize("folder", ROOMS)
def test_a_room_has_at_most_1500_lines(folder: str) -> None:
    assert sum(len(file.read_text().splitlines()) for file in (PACKAGE / folder).glob("*.py")) <= 1500


@pytest.mark.parametrize("module", MODULES)
def test_files_and_functions_are_small(module: str) -> None:
    source = MODULES[module].read_text().splitlines()
    assert len(source) <= 400
    functions = (node for node in ast.walk(ast.parse("\n".join(source))) if isinstance(node, ast.FunctionDef))
    assert {node.name: size for node in functions if (size := lines_of_code(node, source)) > 60} == {}

"""Imports run down: a room asks those below it in the tree of docs/architecture.md, and no others."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.conftest import REPOSITORY
from tests.docs.pages import blocks

CHECKER = "models/conformance.py"  # prunes a model in order to check it; asked by its command and by users alone


def rooms() -> list[str]:
    """The packages of the tree in docs/architecture.md, the uppermost first."""
    page = (REPOSITORY / "docs" / "architecture.md").read_text()
    tree = next(block.text for block in blocks(page) if "\nconsole/" in block.text)
    named = re.findall(r"^(\w+)/", tree, re.MULTILINE)
    return [name for name in named if (REPOSITORY / name / "__init__.py").is_file()]


def imports(tree: ast.AST) -> list[str]:
    """First parts of the modules that code imports anywhere, but for those that only type annotations name."""
    found = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            found += [alias.name.partition(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, "imports are absolute"
            found.append(node.module.partition(".")[0])
        found += imports(node)
    return found


def arrows_up(order: list[str], scripts: set[str], files: dict[str, str]) -> list[str]:
    """Imports of a room above, or of a script. files: path below the root -> source."""
    wrong = []
    for path, source in files.items():
        above = scripts | set(order[: order.index(Path(path).parts[0])])
        wrong += [f"{path} imports {name}" for name in imports(ast.parse(source)) if name in above]
    return wrong


def test_the_tree_names_every_room():
    packages = {path.parent.name for path in REPOSITORY.glob("*/__init__.py")}
    assert sorted(rooms()) == sorted(packages)


def test_no_import_runs_up():
    order = [room for room in rooms() if room != "tests"]
    scripts = {path.stem for path in REPOSITORY.glob("*.py")}
    found = [path.relative_to(REPOSITORY) for room in order for path in (REPOSITORY / room).rglob("*.py")]
    files = {str(path): (REPOSITORY / path).read_text() for path in found}
    assert len(files) > 200
    assert CHECKER in files
    del files[CHECKER]
    assert arrows_up(order, scripts, files) == []


def test_an_arrow_up_is_seen():
    source = "def f():\n    from tasks.vqa import VQA\nif TYPE_CHECKING:\n    import studies\nimport prune, models"
    assert arrows_up(["studies", "tasks", "models"], {"prune"}, {"models/x.py": source}) == [
        "models/x.py imports tasks",
        "models/x.py imports prune",
    ]

"""The direction of imports that the architecture promises."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BELOW = {
    "models": set(),
    "tokenizer": {"models"},
    "generator": {"models"},
    "input_pipeline": {"models"},
    "training": {"tokenizer", "generator", "input_pipeline", "models"},
    "evaluation": {"interop", "tokenizer", "generator", "input_pipeline", "models"},
    "interop": {"tokenizer", "generator", "input_pipeline", "models"},
    "jobs": {"training", "evaluation", "interop", "tokenizer", "generator", "input_pipeline", "models"},
    "configs": set(),
    "main": {"jobs", "models", "configs"},
}
FILES = [ROOT / "main.py", *(path for name in BELOW for path in sorted((ROOT / name).rglob("*.py")))]
FRAMEWORKS = {"tensorflow", "torch", "torchvision", "tensorflow_datasets"}


def packages(nodes) -> set[str]:
    """Top-level packages that these statements import; relative imports count as the empty package."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("" if node.level else node.module.split(".")[0])
    return found


def imported(path: Path) -> set[str]:
    return packages(ast.walk(ast.parse(path.read_text())))


def outside_functions(tree: ast.AST):
    """Statements that run when the module is imported: all that lie in no function."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield node
            yield from outside_functions(node)


def package_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_the_line_only(path):
    own = package_of(path)
    ours = imported(path) & {*BELOW, ""}
    assert ours <= BELOW[own] | {own}, f"{path.relative_to(ROOT)} imports {sorted(ours - BELOW[own] - {own})}"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.name)
def test_configs_import_only_ml_collections_and_each_other(path):
    assert imported(path) <= {"ml_collections", "configs"}


def test_main_imports_nothing_heavy_before_the_command_line_is_checked():
    tree = ast.parse((ROOT / "main.py").read_text())
    heavy = {"jax", "flax", "jobs", "orbax", "grain", *FRAMEWORKS}
    assert not packages(outside_functions(tree)) & heavy


@pytest.mark.parametrize(
    "path", [path for path in FILES if package_of(path) != "interop"], ids=lambda path: str(path.relative_to(ROOT))
)
def test_no_other_framework_is_imported_with_a_module(path):
    assert not packages(outside_functions(ast.parse(path.read_text()))) & FRAMEWORKS


def test_every_package_of_the_repository_has_a_place_in_the_line():
    found = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks"}
    assert found <= set(BELOW)


def test_the_walk_sees_imports_in_functions_and_tells_them_apart():
    tree = ast.parse("import a.b\nif a:\n    from c import d\ndef f():\n    import torch\nfrom . import e\n")
    assert packages(ast.walk(tree)) == {"a", "c", "torch", ""}
    assert packages(outside_functions(tree)) == {"a", "c", ""}

"""Every name that a function uses is defined: linters cannot tell here, since shapes in annotations look like names."""

import builtins
import symtable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# A folder of the repository is a package, or holds the tests; a virtual environment or a build is neither.
FOLDERS = [path.parent for path in ROOT.glob("*/__init__.py")] + [ROOT / "tests"]
FILES = sorted(path for paths in (ROOT.glob("*.py"), *(folder.rglob("*.py") for folder in FOLDERS)) for path in paths)


def undefined(source: str) -> set[str]:
    """Names that are looked up in the module or among the builtins, and are in neither."""
    top = symtable.symtable(source, "module", "exec")
    known = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    known |= {*dir(builtins), "__file__", "__name__", "__doc__"}
    missing: set[str] = set()
    waiting = [top]
    while waiting:
        table = waiting.pop()
        waiting += table.get_children()
        for symbol in table.get_symbols():
            if symbol.is_referenced() and (symbol.is_global() or table is top) and symbol.get_name() not in known:
                missing.add(symbol.get_name())
    return missing


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_are_defined(path):
    assert not undefined(path.read_text())


def test_an_undefined_name_is_found_and_a_shape_is_none():
    source = 'import a\n\ndef f(x: "B T"):\n    y = a.b\n    return [g(z) for z in y if x]\n'
    assert undefined(source) == {"g"}

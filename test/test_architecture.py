"""What holds for the source as a whole."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("*.py"), *ROOT.glob("conve_tracin/**/*.py")])


def imported_packages(path):
    """List the top-level packages that a file imports anywhere: in functions and for annotations, too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.partition(".")[0]


def test_pykeen_is_imported_where_its_things_are_handled():
    importers = [str(path.relative_to(ROOT)) for path in SOURCES if "pykeen" in imported_packages(path)]
    assert importers == ["conve_tracin/checkpoint/pykeen.py", "conve_tracin/data/datasets.py"]


def test_every_folder_of_the_package_is_installed():
    listed = re.search(r"^packages = (\[.*?\])", (ROOT / "pyproject.toml").read_text(), re.DOTALL | re.MULTILINE)[1]
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "conve_tracin").rglob("*.py")}
    assert sorted(ast.literal_eval(listed)) == sorted(".".join(each.parts) for each in folders)

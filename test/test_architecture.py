"""What holds for the source as a whole."""

import ast
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


def test_pykeen_is_imported_by_the_bridge_alone():
    importers = [path.name for path in SOURCES if "pykeen" in imported_packages(path)]
    assert importers == ["pykeen_bridge.py"]


def test_every_folder_of_the_package_is_installed():
    line = next(line for line in (ROOT / "pyproject.toml").read_text().splitlines() if line.startswith("packages = "))
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "conve_tracin").rglob("*.py")}
    assert sorted(ast.literal_eval(line.partition("=")[2].strip())) == sorted(".".join(each.parts) for each in folders)

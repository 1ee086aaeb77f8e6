"""What holds for the source as a whole: who may import whom, and what is installed."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "conve_tracin"

# From the ground up. A module imports from layers below its own; a folder is one layer, whose modules may import each
# other without going round in circles. This holds for imports in functions and for annotations, too.
LAYERS = (
    "errors",
    "files",
    "settings",
    "commands",
    "cli",
    "data",
    "data.kgx",
    "compute",
    "model",
    "checkpoint",
    "ranking",
    "training",
    "influence.engine",
    "influence",
    "report",
    "explanation",
    ("prediction", "verification"),
    "pipeline",
)

# The layers that need no torch, so that `--help` answers at once.
IMPORTED_BY_SCRIPTS = LAYERS[: LAYERS.index("cli") + 1]

PYKEEN_MODULES = {"data.datasets", "checkpoint.pykeen"}


def name_of(path):
    """Name a module of the package as its imports do ("data.queries"), and a script by its file ("run_tracin")."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part not in (PACKAGE, "__init__"))


MODULES = {name_of(path): path for path in sorted((ROOT / PACKAGE).rglob("*.py"))}
SCRIPTS = {name_of(path): path for path in sorted(ROOT.glob("*.py"))}


def imports_of(path, *, everywhere=True):
    """Yield the dotted names that a file imports: anywhere in it, or at its top alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_modules(path, **settings):
    """Yield those of the imported names that are modules of the package or scripts, without the package's name."""
    for name in imports_of(path, **settings):
        within = name.removeprefix(f"{PACKAGE}.")
        # What is imported is a module, or something in it.
        found = next((one for one in (within, within.rpartition(".")[0]) if one in MODULES or one in SCRIPTS), None)
        if found:
            yield found


def layer_of(module):
    """Return the number of a module's layer; scripts are above all of them."""
    if module in SCRIPTS:
        return len(LAYERS)
    names = [(layer,) if isinstance(layer, str) else layer for layer in LAYERS]
    fitting = [
        (len(name), number)
        for number, layer in enumerate(names)
        for name in layer
        if f"{module}.".startswith(f"{name}.")
    ]
    assert fitting, f"{module} is in no layer; say in LAYERS what it may import"
    return max(fitting)[1]


@pytest.mark.parametrize("module", [name for name in MODULES if name])
def test_a_module_imports_from_below(module):
    upwards = {
        (module, imported)
        for imported in own_modules(MODULES[module])
        if layer_of(imported) > layer_of(module)
        or (layer_of(imported) == layer_of(module) and MODULES[imported].parent != MODULES[module].parent)
    }
    assert not upwards


def test_no_imports_go_round_in_circles():
    graph = {name: {one for one in own_modules(path) if one in MODULES} - {name} for name, path in MODULES.items()}
    list(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_imports_at_first_what_needs_no_torch(script):
    assert set(own_modules(SCRIPTS[script], everywhere=False)) <= set(IMPORTED_BY_SCRIPTS)


def test_pykeen_is_imported_by_two_modules_alone():
    sources = MODULES | SCRIPTS
    importers = {name for name, path in sources.items() if "pykeen" in {one.split(".")[0] for one in imports_of(path)}}
    assert importers == PYKEEN_MODULES


def test_every_folder_of_the_package_is_installed():
    # A folder without this file is not found, and would be left out.
    assert all((path.parent / "__init__.py").is_file() for path in MODULES.values())

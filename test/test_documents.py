"""The commands of the README and of docs/, run in their order in one directory, as a reader would run them."""

import importlib
import os
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from documents import DOCUMENTS, FENCED, PLACEHOLDER, ROOT, commands_in, commands_outside, flags_in, read

from conve_tracin import settings

# In the order in which a reader meets them: the README's commands make what the others' need.
RUN_HERE = ["README.md", "docs/tracin.md", "docs/evidence.md", "docs/checkpoints.md", "docs/training.md"]
# test_pipeline.py runs them, for they need Snakemake and a KGX graph; those of the day with Hetionet, which nobody has
# here, are parsed below.
RUN_ELSEWHERE = ["docs/pipeline.md", "docs/a_day_with_a_kgx_graph.md"]
WITHOUT_COMMANDS = [
    "CHANGELOG.md", "docs/notes.md", "docs/promises.md", "docs/notes_curvature.md",
    "docs/notes_hetionet.md",
]  # fmt: skip

# What stands behind a command for it to end within minutes.
SMALLER = {
    "python benchmarks/truth.py lds": "--num-halves 3 --num-seeds 1 --num-models 1 --num-test 5 --num-epochs 1 "
    "--cache cache --results lds.json",
    "python benchmarks/truth.py remove": "--num-seeds 1 --num-models 1 --num-test 5 --num-epochs 1 "
    "--cache cache_for_removal --results removed.json",
    "python benchmarks/verification.py": "--runs 1 --seeds 1 --results verification.json",
    "python benchmarks/accuracy/reproduce.py": "--num-epochs 2 --results accuracy.json",
    "python benchmarks/training.py --threads 1": "--rounds 1 --batches 1",
    "python benchmarks/training.py --large": "--batch-size 512 --batches 1 --only ours",
}  # fmt: skip
# The suite within the suite: everything but the tests themselves.
ENVIRONMENT = {"PYTEST_ADDOPTS": "--collect-only --quiet"}
FLAGS_OF_OTHERS = {
    "--help", "--snakefile", "--cores", "--configfile", "--config", "--dry-run", "--unlock", "--resources",
    "--workflow-profile", "--requirement", "--constraint", "--nproc-per-node",
}  # fmt: skip


def make_project(directory: Path) -> Path:
    """Copy what a clone holds, with an environment in .venv as `make` makes it, but out of this one's packages."""
    unwanted = {".git", ".venv", "demo", "results", "cache"}
    shutil.copytree(
        ROOT,
        directory,
        ignore=lambda folder, names: (
            {"__pycache__", ".pytest_cache", ".ruff_cache", ".hypothesis", ".snakemake"}
            | (unwanted if Path(folder) == ROOT else set())
        ),
    )
    environment = directory / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    own, mine = (sysconfig.get_path("purelib", vars={"base": str(base)}) for base in (environment, sys.prefix))
    Path(own, "mine.pth").write_text(f"import site; site.addsitedir({mine!r})\n")
    for name in ("installed", "installed-test"):
        (environment / name).touch()
    return directory


def run(command: str, directory: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a reader with an activated environment would."""
    places = [directory / ".venv" / "bin", Path(sys.executable).parent, os.environ["PATH"]]
    return subprocess.run(
        ["bash", "-c", command],
        cwd=directory,
        env=os.environ | variables | {"PATH": os.pathsep.join(map(str, places))},
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_document_is_looked_through():
    assert sorted([*RUN_HERE, *RUN_ELSEWHERE, *WITHOUT_COMMANDS]) == DOCUMENTS
    for document in DOCUMENTS:
        assert bool(commands_in(read(document))) == (document not in WITHOUT_COMMANDS), document


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_stand_where_they_are_run(document):
    run_somewhere = {command for other in DOCUMENTS for command in commands_in(read(other))}
    assert [command for command in commands_outside(read(document)) if command not in run_somewhere] == []


def test_what_looks_like_a_command():
    text = """
```bash
python a.py --one \\
    --two  # why
# nothing
```

    make it
    h ∈ python
    tool.py --three

```text
$ snakemake --cores 1
```
Call `OMP_NUM_THREADS=1 python b.py --four`, `python SCRIPT --help` or `train.py --five`, and `pip
install x`, but not `make`.
"""
    assert commands_in(text) == ["python a.py --one      --two"]
    assert commands_outside(text) == [
        "$ snakemake --cores 1", "make it", "tool.py --three", "OMP_NUM_THREADS=1 python b.py --four", "pip install x",
    ]  # fmt: skip


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_flag_exists(document):
    sources = [*ROOT.glob("*.py"), *ROOT.glob("conve_tracin/**/*.py"), *ROOT.glob("benchmarks/**/*.py")]
    declared = {flag for path in sources for flag in re.findall(r'"(--[a-z][a-z0-9-]+)"', path.read_text("utf-8"))}
    declared |= {settings.flag_of(name) for name in settings.with_flags(*settings.TRAINING_SETTINGS)}
    others = (
        settings.TracInOptions,
        settings.NativeEngine,
        settings.PredictionOptions,
        settings.PrepareSettings,
        settings.VerificationOptions,
    )
    declared |= {settings.flag_of(name) for name in settings.with_flags(*others)}
    assert flags_in(read(document)) - declared - FLAGS_OF_OTHERS == set()


def test_commands_of_the_day_with_a_kgx_graph_are_what_the_scripts_take():
    commands = [shlex.split(command) for command in commands_in(read("docs/a_day_with_a_kgx_graph.md"))]
    scripts = [words[1:] for words in commands if words[0] == "python"]
    assert len(scripts) >= 7
    for script, *words in scripts:
        importlib.import_module(script.removesuffix(".py")).build_parser().parse_args(words)


@pytest.mark.slow
def test_documented_commands_run(tmp_path):
    project = make_project(tmp_path / "project")
    done = set()
    for document in RUN_HERE:
        # What stands in capitals is the reader's own.
        for command in (each for each in commands_in(read(document)) if not PLACEHOLDER.search(each)):
            more = [words for start, words in SMALLER.items() if command.startswith(start)]
            result = run(" ".join([command, *more]), project, **ENVIRONMENT)
            assert result.returncode == 0, f"{document}: {command}\n{result.stdout[-2000:]}\n{result.stderr[-2000:]}"
            done.add(command)
    for start in SMALLER:
        assert any(command.startswith(start) for command in done), start


@pytest.mark.slow
def test_documented_installations_resolve(tmp_path):
    if run(f"{sys.executable} -m pip download --no-deps --dest {tmp_path} iniconfig", tmp_path).returncode != 0:
        pytest.skip("no package index can be reached")
    commands = [command for document in DOCUMENTS for command in commands_in(read(document))]
    installations = [command for command in commands if command.startswith("pip ")]
    assert installations
    for command in installations:
        result = run(f"{sys.executable} -m {command}", ROOT, PIP_DRY_RUN="1")
        assert result.returncode == 0, f"{command}\n{result.stderr[-2000:]}"


def test_promises_name_tests_that_are_there():
    promises = read("docs/promises.md")
    promised = re.findall(r"`(test/[\w/]+\.py)::(\w+)`", promises)
    assert len(promised) >= len(re.findall(r"^- ", promises, re.MULTILINE)) > 0
    for file, name in promised:
        assert f"\ndef {name}(" in (ROOT / file).read_text(encoding="utf-8"), name


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_leads_somewhere(document):
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", read(document)):
        file, _, anchor = target.partition("#")
        path = (ROOT / document).parent / file if file else ROOT / document
        assert path.exists(), target
        assert not anchor or anchor in anchors_of(path.read_text(encoding="utf-8")), target


def anchors_of(text: str) -> set[str]:
    """Return what GitHub calls the headings of a text."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_module_and_file_of_the_project_exists(document):
    named = re.findall(r"`((?:conve_tracin|test|benchmarks|docs|profiles)/[\w./-]*)(?:::\w+)?`", read(document))
    assert [path for path in named if not (ROOT / path).exists()] == []
    for name in re.findall(r"\bconve_tracin(?:\.\w+)+", read(document)):
        assert pkgutil.resolve_name(name)


def test_the_readme_lists_the_folders_of_the_package_and_the_scripts():
    rows = re.findall(r"^\| (`.*?) \| [^|]+ \|$", read("README.md"), re.MULTILINE)
    listed = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    folders = {f"{path.parent.name}/" for path in ROOT.glob("conve_tracin/*/__init__.py")}
    assert folders | {path.name for path in ROOT.glob("*.py")} <= listed

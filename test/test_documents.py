"""The commands of the README and of docs/, run in their order in one directory, as a reader would run them."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# The pipeline's commands have a test of their own, which knows where Snakemake is installed.
DOCUMENTS = ["README.md", "docs/tracin.md", "docs/checkpoints.md", "docs/training.md"]
# These set up an environment, or run this very suite.
NOT_RUN = ("make ", "pip install", "source ")


def commands_of(document: str) -> list[str]:
    """List the commands in a document's bash blocks, continuation lines joined."""
    path = ROOT / document
    blocks = re.findall(r"```bash\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.S) if path.is_file() else []
    joined = "\n".join(blocks).replace("\\\n", " ")
    lines = (line.split("  #")[0].strip() for line in joined.splitlines())
    return [line for line in lines if line and not line.startswith(NOT_RUN)]


def test_every_document_has_commands_to_run():
    assert all(commands_of(document) for document in DOCUMENTS[:3])


@pytest.mark.slow
def test_documented_commands_run(tmp_path):
    copy = tmp_path / "project"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", "demo", "__pycache__", "test"))
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "python").symlink_to(sys.executable)
    # The environment's own programs (torchrun) stand beside its python; the link above would lead out of it.
    search = os.pathsep.join([str(Path(sys.executable).parent), str(programs), os.environ["PATH"]])
    for document in DOCUMENTS:
        for command in commands_of(document):
            result = subprocess.run(
                ["bash", "-c", command],
                cwd=copy,
                env=os.environ | {"PATH": search},
                capture_output=True,
                text=True,
                check=False,
            )
            assert result.returncode == 0, f"{document}: {command}\n{result.stderr[-2000:]}"

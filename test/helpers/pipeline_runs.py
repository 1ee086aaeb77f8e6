"""Runs of the pipeline."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]

SHIPPED = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))

SNAKEMAKE = [sys.executable, "-m", "snakemake"]

needs_snakemake = pytest.mark.skipif(
    importlib.util.find_spec("snakemake") is None,
    reason="snakemake is not installed (requirements-pipeline.txt)",
)

TINY = {
    "embedding_dim": 12, "embedding_height": 3, "embedding_width": 4, "output_channels": 4, "num_epochs": 2,
    "checkpoint_frequency": 1, "eval_frequency": 1, "no_gpu": True, "num_explained": 2,
}  # fmt: skip


def snakemake(directory, config_file, *words):
    """Run Snakemake in `directory`; targets and flags come before --configfile, which takes all words behind it."""
    arguments = ["--snakefile", ROOT / "Snakefile_pytorch_conve", "--cores", "2", "--directory", directory, *words]
    return subprocess.run(
        [*SNAKEMAKE, *map(str, arguments), "--configfile", str(config_file)],
        capture_output=True,
        text=True,
        check=False,
    )


def write_config(directory, **settings):
    path = directory / "my config.yaml"
    path.write_text(yaml.safe_dump({**SHIPPED, **settings}), encoding="utf-8")
    return path

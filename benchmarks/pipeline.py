#!/usr/bin/env python3
"""What the pipeline reaches as shipped: the metrics of its model, from a run of Snakemake in an empty directory.

    python benchmarks/pipeline.py --output benchmarks/results/pipeline.json

It says nothing of time, which other work on the machine would change. The last line is JSON.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import common  # noqa: E402
from conve_tracin.pipeline import Pipeline  # noqa: E402


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", default="all", help="of Snakemake")
    parser.add_argument("--output", type=Path, help="JSON file")
    args = parser.parse_args()
    settings = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile_pytorch_conve")]
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run([*command, "--cores", args.cores, "--directory", directory], check=True)
        root = Path(directory) / Pipeline(settings).root
        test = json.loads((root / "model" / "test_results.json").read_text(encoding="utf-8"))
        history = json.loads((root / "model" / "training_history.json").read_text(encoding="utf-8"))
        ranks = [
            line.split("\t") for line in (root / "evaluation" / "ranks.tsv").read_text(encoding="utf-8").splitlines()
        ]
    valid = {record["epoch"]: record["valid"]["mean_reciprocal_rank"] for record in history if record.get("valid")}
    tail_ranks = [float(row[ranks[0].index("tail_rank")]) for row in ranks[1:]]
    result = {
        "machine": common.machine(),
        "settings": settings,
        "test": test,
        "best_epoch": max(valid, key=valid.get),
        "best_valid_mrr": max(valid.values()),
        "explained_tail_ranks": sorted(tail_ranks)[: settings["num_explained"]],
    }
    common.print_json(result, args.output)


if __name__ == "__main__":
    main()

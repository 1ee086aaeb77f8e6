#!/usr/bin/env python3
"""Accuracy of one and of several processes that train together, on UMLS with the settings of `make demo`.

    python benchmarks/processes.py --data demo/data --output benchmarks/results/processes.json

The same recipe is trained with each seed by one process and by several under torchrun; with several, each takes
BatchNorm's statistics over its own part of a batch. The last line is JSON.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import common

RECIPE = {
    "--training-approach": "kvsall", "--num-epochs": "90", "--batch-size": "128", "--learning-rate": "0.003",
    "--lr-decay": "0.995", "--eval-frequency": "5", "--checkpoint-frequency": "30",
}  # fmt: skip
METRICS = ("mean_reciprocal_rank", "hits@10")


def main() -> None:
    """Parse, train, print."""
    args = parse_args()
    runs = []
    for seed in args.seeds:
        for processes in args.processes:
            runs.append({"processes": processes, "seed": seed, **train(args.data, processes=processes, seed=seed)})
            print(json.dumps(runs[-1]), flush=True)
    summary = {str(processes): summarize(runs, processes) for processes in args.processes}
    result = {"machine": common.machine(), "recipe": RECIPE, "inverse_triples": True, "runs": runs, "summary": summary}
    common.print_json(result, args.output)


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that prepare_data.py wrote")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--output", type=Path, help="also write the JSON here")
    return parser.parse_args()


def train(data: Path, *, processes: int, seed: int) -> dict[str, float]:
    """Train and return the test metrics."""
    files = {f"--{name}": str(data / f"{name}.txt") for name in ("train", "valid", "test")}
    files |= {f"--{name.replace('_', '-')}": str(data / f"{name}.tsv") for name in ("entity_to_id", "relation_to_id")}
    with tempfile.TemporaryDirectory() as directory:
        settings = {**files, **RECIPE, "--random-seed": str(seed), "--output-dir": directory}
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        script = str(Path(__file__).parents[1] / "train_pytorch.py")
        flags = [part for flag in settings.items() for part in flag]
        subprocess.run([*launcher, script, *flags, "--inverse-triples", "--no-gpu"], check=True, capture_output=True)
        results = json.loads((Path(directory) / "test_results.json").read_text(encoding="utf-8"))
    return {name: round(results[name], 4) for name in METRICS}


def summarize(runs: list[dict[str, Any]], processes: int) -> dict[str, list[float]]:
    """Return mean and standard deviation of each metric over the seeds."""
    summary = {}
    for name in METRICS:
        values = [run[name] for run in runs if run["processes"] == processes]
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        summary[name] = [round(statistics.mean(values), 4), round(deviation, 4)]
    return summary


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Training of this version and of another one, for `training.py --against DIR` and `training.py --neighbour`.

A version trains in a process of its own, by the functions of its own `benchmarks/training.py`. As a script this file is
that process, and the neighbour that keeps the processors busy.
"""

import contextlib
import importlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

Rates = dict[str, float]


def compare(against: Path | None, sizes: dict[str, Any], *, rounds: int) -> dict[str, Any]:
    """Train with this version and the other in turn; return their median rates and the ratios in each round."""
    roots = {"this": ROOT} | ({} if against is None else {"other": against})
    measured: dict[str, list[Rates]] = {name: [] for name in roots}
    for _ in range(rounds):
        for name, root in reversed(roots.items()):
            measured[name].append(train_apart(root, sizes))
            print(f"{name:<22} {json.dumps(measured[name][-1])}", flush=True)
    result: dict[str, Any] = {"sizes": sizes, **{name: median(rates) for name, rates in measured.items()}}
    if against is not None:
        pairs = list(zip(measured["this"], measured["other"], strict=True))
        for key in ("queries_per_second", "processor_queries_per_second"):
            result[f"ratios_of_{key}"] = [round(this[key] / other[key], 2) for this, other in pairs]
    return result


def compare_beside_neighbour(against: Path | None, sizes: dict[str, Any], *, rounds: int) -> dict[str, Any]:
    """Measure how much longer a batch takes beside a process of as many threads that multiplies matrices."""
    result: dict[str, Any] = {"sizes": sizes}
    for name, root in {"this": ROOT, **({} if against is None else {"other": against})}.items():
        alone, beside = [], []
        for _ in range(rounds):
            alone.append(train_apart(root, sizes)["queries_per_second"])
            with neighbour(sizes["threads"]):
                beside.append(train_apart(root, sizes)["queries_per_second"])
            print(f"{name:<22} queries per second alone {alone[-1]}, beside {beside[-1]}", flush=True)
        slowdowns = [round(one / other, 2) for one, other in zip(alone, beside, strict=True)]
        result[name] = {"slowdown": statistics.median(slowdowns), "slowdowns": slowdowns}
        result[name] |= {"alone_queries_per_second": alone, "beside_queries_per_second": beside}
    return result


def median(rates: list[Rates]) -> Rates:
    """Return the median of each figure."""
    return {key: statistics.median(one[key] for one in rates) for key in rates[0]}


def train_apart(root: Path, sizes: dict[str, Any]) -> Rates:
    """Train with the version in `root` in a process of its own."""
    command = [sys.executable, __file__, "train", str(root), json.dumps(sizes)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


@contextlib.contextmanager
def neighbour(threads: int) -> Iterator[None]:
    """Keep this many threads of another process busy with products of matrices."""
    process = subprocess.Popen([sys.executable, __file__, "multiply", str(threads)], stdout=subprocess.PIPE, text=True)
    try:
        process.stdout.readline()
        yield
    finally:
        process.kill()
        process.wait()


def train(root: Path, sizes: dict[str, Any]) -> Rates:
    """Train batches for a while with the version in `root`; the rates are those of the median batch.

    `sizes` has members graph (of `common.synthetic_triples`), model, batch_size, threads (0: as many as torch chooses),
    warm_up (batches) and seconds, after which no batch is begun.
    """
    sys.path.insert(0, str(root))
    from conve_tracin import cli

    # As the version's train_pytorch.py does.
    getattr(cli, "let_waiting_threads_sleep", bool)()
    import argparse

    import torch

    # Those of the version in `root`, which this file's own may not be.
    common, training = (importlib.import_module(f"benchmarks.{name}") for name in ("common", "training"))
    if sizes["threads"]:
        torch.set_num_threads(sizes["threads"])
    graph = sizes["graph"]
    config = training.TrainingConfig(
        training_approach="kvsall", batch_size=sizes["batch_size"], label_smoothing=0.1, loss=sizes["loss"]
    )
    model = {"num_entities": graph["entities"], "num_relations": graph["relations"], **sizes["model"]}
    args = argparse.Namespace(device="cpu", seed=0, batch_size=sizes["batch_size"])
    step = training.our_step(common.synthetic_triples(**graph, seed=0), config, model, args)
    for _ in range(sizes["warm_up"]):
        step()
    walls, processors = time_for(step, sizes["seconds"])
    return {
        "queries_per_second": round(sizes["batch_size"] / statistics.median(walls), 1),
        "processor_queries_per_second": round(sizes["batch_size"] / statistics.median(processors), 1),
        "peak_memory_gb": round(common.peak_memory_gb(), 3),
    }


def time_for(step: Callable[[], Any], seconds: float) -> tuple[list[float], list[float]]:
    """Take steps until the seconds are over; return the wall-clock and the processor seconds of each."""
    walls, processors = [], []
    while sum(walls) < seconds:
        wall, processor = time.perf_counter(), time.process_time()
        step()
        walls.append(time.perf_counter() - wall)
        processors.append(time.process_time() - processor)
    return walls, processors


def multiply(threads: int) -> None:
    """Multiply matrices until killed."""
    import torch

    torch.set_num_threads(threads)
    matrix = torch.rand(1000, 1000)
    print("started", flush=True)
    while True:
        matrix @ matrix


if __name__ == "__main__":
    if sys.argv[1] == "train":
        print(json.dumps(train(Path(sys.argv[2]), json.loads(sys.argv[3]))))
    else:
        multiply(int(sys.argv[2]))

"""What the benchmarks share: graphs, a machine's description, and JSON as the last line."""

import json
import os
import platform
import resource
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

# FB15k-237: training triples, entities, relations and distinct (head, relation) pairs.
FB15K237 = {"triples": 272_115, "entities": 14_541, "relations": 237, "pairs": 93_372}


def synthetic_triples(*, triples: int, entities: int, relations: int, pairs: int, seed: int = 0) -> np.ndarray:
    """Draw (triples, 3) ids with `pairs` distinct (head, relation), each at least once, and skewed tails."""
    generator = np.random.default_rng(seed)
    keys = generator.choice(entities * relations, size=pairs, replace=False)
    chosen = np.concatenate([keys, generator.choice(keys, size=triples - pairs)])
    # Squaring a uniform draw gives a few hubs many triples, as in real graphs.
    tails = (generator.random(triples) ** 2 * entities).astype(np.int64)
    return np.stack([chosen // relations, chosen % relations, tails], axis=1)


def read_split(data: Path, split: str = "train") -> tuple[np.ndarray, int, int]:
    """Read a split of a benchmark as published (folder or tar.gz): triples (N, 3), counts of entities and relations."""
    texts = {name: _read_member(data, f"{name}.txt") for name in ("train", "valid", "test")}
    rows = {name: np.array([line.split("\t") for line in text.splitlines()]) for name, text in texts.items()}
    everything = np.concatenate(list(rows.values()))
    entities = np.unique(everything[:, [0, 2]])
    relations = np.unique(everything[:, 1])
    chosen = rows[split]
    columns = [np.searchsorted(labels, chosen[:, i]) for i, labels in enumerate((entities, relations, entities))]
    return np.stack(columns, axis=1).astype(np.int64), len(entities), len(relations)


def _read_member(data: Path, name: str) -> str:
    if data.is_dir():
        return (data / name).read_text(encoding="utf-8")
    with tarfile.open(data) as archive:
        member = next(member for member in archive.getnames() if member.endswith(name))
        return archive.extractfile(member).read().decode()


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Run `work` once; return the wall-clock seconds it took, and its result."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def machine() -> dict[str, Any]:
    """Describe the machine that measured."""
    import torch

    model = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    return {
        "processor": model,
        "amx": any("amx_tile" in line for line in _lines("/proc/cpuinfo")),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []


def peak_memory_gb() -> float:
    """Return the process's peak resident memory in 10⁹ bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def print_json(result: dict[str, Any], output: Path | None = None) -> None:
    """Print the result as the last line, and write it to a file where one is wanted."""
    line = json.dumps(result)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(line)

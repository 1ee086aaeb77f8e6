"""Commands as a user calls them, each a process of its own: the first call, the second one, and a loop."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from conve_tracin.model.conve import ConvE

ROOT = Path(__file__).parents[1]


def write_inputs(
    folder: Path,
    triples: np.ndarray,
    num_entities: int,
    num_relations: int,
    *,
    size: tuple[int, int],
    training: dict[str, Any],
    has_one_relation: bool = False,
) -> None:
    """Write a graph with labels, and a model of random weights, unless they are there from an earlier run.

    The test triples are random ones, or of one relation as candidates are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    labels = {
        "entity": np.array([f"CURIE:{number:07d}" for number in range(num_entities)]),
        "relation": np.array([f"predicate:{number}" for number in range(num_relations)]),
    }
    for kind, of_kind in labels.items():
        lines = (f"{label}\t{place}\n" for place, label in enumerate(of_kind))
        (folder / f"{kind}_to_id.tsv").write_text("".join(lines), encoding="utf-8")
    if not (folder / "train.txt").exists():
        with (folder / "train.txt").open("w", encoding="utf-8") as file:
            for block in np.array_split(triples, max(1, len(triples) // 500_000)):
                file.writelines("\t".join(line) + "\n" for line in _labelled(block, labels))
    generator = np.random.default_rng(0)
    if has_one_relation:
        triples = triples[triples[:, 1] == generator.choice(triples[:, 1])]
    chosen = triples[generator.choice(len(triples), min(200, len(triples)), replace=False)]
    text = "".join("\t".join(line) + "\n" for line in _labelled(chosen, labels))
    (folder / "test_triples.txt").write_text(text, encoding="utf-8")
    torch.manual_seed(0)
    model = ConvE(
        num_entities=num_entities,
        num_relations=num_relations * (2 if training.get("inverse_triples") else 1),
        embedding_dim=size[0] * size[1],
        embedding_height=size[0],
        embedding_width=size[1],
    )
    content = {"model_state_dict": model.state_dict(), "model_config": model.config.as_dict()}
    torch.save({**content, "training_config": training}, folder / "model.pt")


def inputs_in(folder: Path) -> dict[str, Path]:
    """Name the graph's files that `write_inputs` wrote into a folder."""
    names = {"train": "train.txt", "entity_to_id": "entity_to_id.tsv", "relation_to_id": "relation_to_id.tsv"}
    return {kind: folder / name for kind, name in names.items()}


def _labelled(triples: np.ndarray, labels: dict[str, np.ndarray]) -> Any:
    heads, relations, tails = triples.T
    columns = (labels["entity"][heads], labels["relation"][relations], labels["entity"][tails])
    return zip(*(column.tolist() for column in columns), strict=True)


def measure_commands(
    folder: Path, *, loop: int, many: int, against: Path | None, loop_against: int, is_indexed: bool
) -> dict[str, Any]:
    """Time single calls of `tracin_pytorch.py`, a loop of them, and one call for many test triples.

    In the loop the versions take turns, so that whatever else the machine does meets them alike. Of the other version,
    which need not have an index, only the loop is timed, of as many calls or fewer. With an index of an earlier run,
    no first call is timed.
    """
    tests = [line.split("\t") for line in (folder / "test_triples.txt").read_text(encoding="utf-8").splitlines()]
    versions = {"this": ROOT} | ({} if against is None else {"other": against})
    calls: dict[str, list[dict[str, float]]] = {name: [] for name in versions}

    def ask(name: str, place: int) -> dict[str, float]:
        question = ["--test-triple", *tests[place % len(tests)]]
        calls[name].append(call(versions[name], folder, question, f"{name}.json"))
        print(f"{name}, call {place + 1}: {calls[name][-1]}", file=sys.stderr)
        return calls[name][-1]

    if not is_indexed:
        shutil.rmtree(folder / "train.txt.index", ignore_errors=True)
    singles = {name: ask("this", place) for place, name in enumerate(("first call", "second call"))}
    if is_indexed:
        del singles["first call"]
    result: dict[str, Any] = {"this": singles, "other": {}}
    for place in range(loop):
        for name in versions if place < loop_against else ["this"]:
            ask(name, 2 + place)
    for name, measured in (("this", calls["this"][2:]), ("other", calls.get("other"))):
        if measured:
            result[name][f"loop of {len(measured)}"] = _sums(measured)
    if many:
        (folder / "many.txt").write_text("".join("\t".join(test) + "\n" for test in tests[-many:]), encoding="utf-8")
        result["this"][f"one call for {many}"] = call(ROOT, folder, ["--test-triples", folder / "many.txt"], "many")
    if against is not None and loop:
        ours, others = calls["this"][2:][:loop_against], calls["other"]
        result["ratio of the loops"] = {
            kind: round(_sums(others)[kind] / _sums(ours)[kind], 2) for kind in ("seconds", "cpu")
        }
    return result


def call(root: Path, folder: Path, question: list[Any], output: str) -> dict[str, float]:
    """Run one command; return its wall-clock seconds, processor seconds, and peak memory in 10⁹ bytes."""
    several = question[0] == "--test-triples"
    command = [sys.executable, root / "tracin_pytorch.py", "--model-path", folder / "model.pt", *question]
    command += [word for name, path in inputs_in(folder).items() for word in (f"--{name.replace('_', '-')}", path)]
    command += ["--method", "gauss-newton", "--device", "cpu"]
    command += ["--output-dir" if several else "--output", folder / output]
    # Users' Python keeps what it has compiled of the scripts.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    started = time.perf_counter()
    process = subprocess.Popen([str(part) for part in command], cwd=root, env=environment, **silent)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"exit code {process.returncode}: {' '.join(map(str, command))}")
    return {
        "seconds": round(time.perf_counter() - started, 2),
        "cpu": round(used.ru_utime + used.ru_stime, 2),
        "peak_memory_gb": round(used.ru_maxrss * 1024 / 1e9, 2),
    }


def _sums(measured: list[dict[str, float]]) -> dict[str, float]:
    return {
        "seconds": round(sum(each["seconds"] for each in measured), 2),
        "cpu": round(sum(each["cpu"] for each in measured), 2),
        "peak_memory_gb": max(each["peak_memory_gb"] for each in measured),
    }

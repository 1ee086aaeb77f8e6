"""The command lines that the scripts print as the next step, and the settings that are advised in them.

docs/training.md says why these settings.
"""

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from conve_tracin.settings import GAUSS_NEWTON, flag_of

# The files that prepare_data.py writes beside the mappings, by the option that reads them.
NAME_FILES = {"node_name_dict": "node_name_dict.txt", "edge_map": "edge_map.json"}

ADVISED_TRAINING: dict[str, Any] = {
    "training_approach": "kvsall", "inverse_triples": True, "loss": "ce", "query_weights": "tails",
    "learning_rate": 0.003,
}  # fmt: skip
# Settings by graph size; each key is the largest number of training triples.
ADVISED_BY_SIZE: dict[float, dict[str, Any]] = {
    50_000: {"lr_decay": 0.985, "batch_size": 128, "num_epochs": 90},
    300_000: {
        "learning_rate": 0.002, "lr_decay": 0.96, "num_epochs": 30, "weight_averaging": 0.999,
        "embedding_dim": 200, "embedding_height": 8, "embedding_width": 25, "output_channels": 64,
        "kernel_height": 9, "kernel_width": 9, "feature_map_dropout": 0.4, "output_dropout": 0.5,
    },
    1_000_000: {
        "lr_decay": 0.95, "num_epochs": 25, "embedding_dim": 64, "embedding_height": 8, "embedding_width": 8,
    },
    float("inf"): {
        "lr_decay": 0.95, "num_epochs": 25, "embedding_dim": 32, "embedding_height": 8, "embedding_width": 4,
    },
}  # fmt: skip

# Above this many entities, scoring them all dominates a batch.
MANY_ENTITIES = 200_000
ADVISED_SAMPLE: dict[str, Any] = {"entity_sample": 4096}

ADVISED_EXPLAINING: dict[str, Any] = {"method": GAUSS_NEWTON}


def advised_training(num_triples: int, *, num_entities: int) -> dict[str, Any]:
    """Return the settings of training that suit a graph with so many training triples and entities."""
    by_size = next(chosen for limit, chosen in ADVISED_BY_SIZE.items() if num_triples <= limit)
    return ADVISED_TRAINING | by_size | (ADVISED_SAMPLE if num_entities >= MANY_ENTITIES else {})


def name_files_beside(mapping: Path) -> dict[str, Path]:
    """Return the files with names that lie beside a mapping, by the option that reads them."""
    beside = {option: mapping.parent / name for option, name in NAME_FILES.items()}
    return {option: path for option, path in beside.items() if path.is_file()}


def command_line(script: str, options: Mapping[str, Any]) -> str:
    """Write a command line that a shell reads: an option of None or False is left out, a list gives several words."""
    words = ["python", script]
    for name, value in options.items():
        if value is None or value is False or value == ():
            continue
        words.append(flag_of(name))
        if value is not True:
            words += [str(each) for each in (value if isinstance(value, list | tuple) else [value])]
    return shlex.join(words)


def train_command(files: Mapping[str, Path], *, output_dir: Path, num_triples: int, num_entities: int) -> str:
    """Return the command that trains on prepared files, with the settings that are advised for their size."""
    settings = advised_training(num_triples, num_entities=num_entities)
    return command_line("train_pytorch.py", {**files, "output_dir": output_dir, **settings})


def rank_command(files: Mapping[str, Path | None], *, output_dir: Path, skip_unknown: bool) -> str:
    """Return the command that ranks the test triples of training with its best model."""
    names = name_files_beside(files["entity_to_id"])
    options = {"model_path": output_dir / "best_model.pt", **files, **names, "skip_unknown": skip_unknown}
    return command_line("rank_pytorch.py", {**options, "output": output_dir / "ranks.tsv"})


def explain_command(
    model: Path, files: Mapping[str, Path | None], *, ranks: Path, known: Iterable[Path], number: int
) -> str:
    """Return the command that explains the best of a table of ranked triples."""
    beside = ranks.parent / f"{ranks.stem}_explained"
    options = {
        "model_path": model, **files, "known": list(known), "test_triples": ranks, "max_test_triples": number,
        **ADVISED_EXPLAINING, "output": beside.with_suffix(".json"), "report": beside.with_suffix(".html"),
    }  # fmt: skip
    return command_line("run_tracin.py", options)

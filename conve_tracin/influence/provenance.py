"""What is known of a checkpoint besides its weights: how well its model ranks, and what is doubtful about it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conve_tracin.checkpoint.native import read_checkpoint_outline
from conve_tracin.errors import InputError
from conve_tracin.settings import GAUSS_NEWTON, TrainingConfig

MRR, HITS_AT_1, HITS_AT_10 = SHOWN = ("mean_reciprocal_rank", "hits@1", "hits@10")
# What PyKEEN's results.json calls them.
PYKEEN_NAMES = {MRR: "inverse_harmonic_mean_rank", HITS_AT_1: "hits_at_1", HITS_AT_10: "hits_at_10"}


@dataclass(frozen=True)
class Provenance:
    """What a checkpoint's file, and those beside it, say of its model.

    Attributes:
        path: the checkpoint.
        epoch: after which it was saved, None if unknown.
        training_config: the settings of its training; empty if unknown.
        metrics: some of SHOWN, on `split` ("test" or "validation") and of `ranked` ("heads and tails", say).
    """

    path: Path
    epoch: int | None
    training_config: Mapping[str, Any]
    metrics: Mapping[str, float]
    split: str = ""
    ranked: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the metrics as a member of the JSON; empty if there are none."""
        if not self.metrics:
            return {}
        return {"split": self.split, "ranked": self.ranked, "epoch": self.epoch, **self.metrics}


def provenance_of(path: Path) -> Provenance:
    """Read what is known of a checkpoint; what cannot be read is not known."""
    try:
        outline = read_checkpoint_outline(path)
    except InputError:
        outline = {}
    epoch, config = outline.get("epoch"), outline.get("training_config", {})
    tested = _test_results(path, outline) or _pykeen_results(path)
    if tested:
        return Provenance(path, epoch, config, *tested)
    stored = outline.get("metrics", {})
    ranked = stored.get("ranked", "")
    return Provenance(path, epoch, config, _shown(stored), "validation", ranked)


def _test_results(path: Path, outline: Mapping[str, Any]) -> tuple[dict[str, float], str, str] | None:
    """Find the test_results.json of the checkpoint's training run, if it is of the same epoch."""
    for directory in path.resolve().parents[:2]:
        results, config = _read(directory / "test_results.json"), _read(directory / "config.json")
        is_same_run = all(
            config.get(name) == outline.get(name) for name in ("training_config", "model_config")
        ) and outline.get("epoch") == results.get("epoch")
        if _shown(results) and is_same_run:
            return _shown(results), "test", str(results.get("ranked", ""))
    return None


def _pykeen_results(path: Path) -> tuple[dict[str, float], str, str] | None:
    """Find the results.json of a PyKEEN pipeline beside its model."""
    found: Any = _read(path.parent / "results.json")
    for member in ("metrics", "both", "realistic"):
        found = found.get(member) if isinstance(found, Mapping) else None
    shown = _shown({name: found.get(theirs) for name, theirs in PYKEEN_NAMES.items()}) if found else {}
    return (shown, "test", "heads and tails") if shown else None


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, Mapping) else {}


def _shown(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: metrics[name] for name in SHOWN if isinstance(metrics.get(name), float)}


# ---------------------------------------------------------------------------------------------------------------
# What to be careful about


def doubts_about(checkpoints: Sequence[Provenance], *, method: str) -> Iterator[str]:
    """Say what speaks against relying on influences by these checkpoints, a sentence or two each."""
    last = checkpoints[-1]
    planned = last.training_config.get("num_epochs")
    if _is_early(last):
        yield (
            f"{last.path.name} is of epoch {last.epoch} of {planned}. An early model ranks differently from a finished "
            "one, and for other reasons."
        )
    if method == GAUSS_NEWTON and not _is_measured(last.training_config):
        yield (
            "The method was not measured on models trained like this one, but on those of --loss ce "
            "--training-approach kvsall --query-weights tails."
        )
    if len(checkpoints) == 1:
        yield (
            "This is one model's view. A model trained with another seed lists other triples as well; several models "
            "given together (--model-path A B C) show where they agree."
        )
    elif _is_one_run(checkpoints):
        yield (
            "All checkpoints are of models with one seed. That they agree does not mean that a model with another seed "
            "would."
        )


def _is_early(checkpoint: Provenance) -> bool:
    planned = checkpoint.training_config.get("num_epochs")
    may_stop = checkpoint.training_config.get("early_stopping_patience")
    return isinstance(planned, int) and not may_stop and checkpoint.epoch is not None and 2 * checkpoint.epoch < planned


def _is_measured(config: Mapping[str, Any]) -> bool:
    if config.get("loss", TrainingConfig.loss) != "ce":
        return True
    return (config.get("training_approach"), config.get("query_weights")) == ("kvsall", "tails")


def _is_one_run(checkpoints: Sequence[Provenance]) -> bool:
    seeds = [checkpoint.training_config.get("random_seed") for checkpoint in checkpoints]
    return None not in seeds and len(set(seeds)) == 1

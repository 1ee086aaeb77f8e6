"""A native checkpoint with its triples and mappings on disk."""

import json

import pytest
import torch
from influence_examples import TRAINING, make_model

import tracin_pytorch

ENTITIES = ["aspirin", "head ache", "café", "CHEBI:4", "e4", "e5"]

RELATIONS = ["treats", "causes", "predicate:27"]


@pytest.fixture
def files(tmp_path):
    """Mappings, training triples and a checkpoint of the influence tests' small model."""

    def sentence(triple):
        return "\t".join([ENTITIES[triple[0]], RELATIONS[triple[1]], ENTITIES[triple[2]]]) + "\n"

    paths = {name: tmp_path / name for name in ("train.txt", "entities.tsv", "relations.tsv", "model.pt", "out.json")}
    paths["train.txt"].write_text("".join(map(sentence, TRAINING)), encoding="utf-8")
    paths["entities.tsv"].write_text("".join(f"{label}\t{i}\n" for i, label in enumerate(ENTITIES)), encoding="utf-8")
    paths["relations.tsv"].write_text("".join(f"{label}\t{i}\n" for i, label in enumerate(RELATIONS)))
    save_model(paths["model.pt"], make_model(dtype=torch.float32))
    return paths


def save_model(path, model, **members):
    checkpoint = {"epoch": 3, "model_state_dict": model.state_dict(), "model_config": model.config.as_dict(), **members}
    torch.save(checkpoint, path)


def arguments(files, *more, model=None):
    return [
        *("--model-path", *map(str, model or [files["model.pt"]]), "--train", str(files["train.txt"])),
        *("--entity-to-id", str(files["entities.tsv"]), "--relation-to-id", str(files["relations.tsv"]), *more),
    ]


def run(files, *more, **options):
    tracin_pytorch.main(arguments(files, *more, **options))
    return json.loads(files["out.json"].read_text(encoding="utf-8"))

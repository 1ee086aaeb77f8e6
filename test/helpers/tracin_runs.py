"""Runs of the influence scripts over the files of a small model."""

import pytest
import torch
from influence_examples import NUM_ENTITIES, NUM_RELATIONS, TRAINING, make_model

# More than two groups of test triples, the last one not full.
WANTED = [(head, relation, tail) for relation in range(NUM_RELATIONS) for head in range(4) for tail in range(3)]


@pytest.fixture
def files(tmp_path):
    paths = {name: tmp_path / name for name in ("train.txt", "test.txt", "entities.tsv", "relations.tsv", "model.pt")}

    def lines(triples):
        return "".join(f"e{head}\tr{relation}\te{tail}\n" for head, relation, tail in triples)

    paths["train.txt"].write_text(lines(TRAINING))
    paths["test.txt"].write_text(lines(WANTED))
    for name, letter, count in (("entities.tsv", "e", NUM_ENTITIES), ("relations.tsv", "r", NUM_RELATIONS)):
        paths[name].write_text("".join(f"{letter}{i}\t{i}\n" for i in range(count)))
    model = make_model(dtype=torch.float32)
    content = {"epoch": 3, "model_state_dict": model.state_dict(), "model_config": model.config.as_dict()}
    torch.save(content, paths["model.pt"])
    return paths


def arguments(files, *more):
    given = ["--model-path", files["model.pt"], "--train", files["train.txt"]]
    given += ["--entity-to-id", files["entities.tsv"], "--relation-to-id", files["relations.tsv"]]
    return [str(part) for part in [*given, *more]]


def content_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

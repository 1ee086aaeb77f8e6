"""The directory that PyKEEN's pipeline saves: its mappings hold, and its triples of ids are read."""

import gzip
import json
import shutil

import numpy as np
import pytest
import torch
from command_lines import assert_refused, run
from pykeen_examples import trained_model, training_factory


@pytest.fixture
def folder(tmp_path):
    """A DistMult, pickled and as weights of a ConvE, with all that PyKEEN saves beside them, and a file of labels."""
    folder = tmp_path / "pipeline"
    training_factory().to_path_binary(folder / "training_triples")
    torch.save(trained_model("DistMult", dtype=torch.float32), folder / "trained_model.pkl")
    torch.save(trained_model("ConvE", dtype=torch.float32).state_dict(), folder / "state_dict.pt")
    triples = training_factory().mapped_triples[:7]
    np.savetxt(folder / "test.txt", training_factory().label_triples(triples), fmt="%s", delimiter="\t")
    return folder


def swapped(folder, kind):
    """Write a mapping like the model's, in which two labels have each other's ids."""
    own = folder / f"training_triples/{kind}_to_id.tsv.gz"
    header, first, second, *rest = gzip.decompress(own.read_bytes()).decode().splitlines()
    (one, label), (two, other) = first.split("\t"), second.split("\t")
    path = folder / f"other_{kind}.tsv"
    path.write_text("\n".join([header, f"{one}\t{other}", f"{two}\t{label}", *rest]) + "\n")
    return path


def arguments(folder, model, **paths):
    names = {kind: folder / f"training_triples/{kind}_to_id.tsv.gz" for kind in ("entity", "relation")} | paths
    return (
        "run_tracin", "--model-path", folder / model, "--train", folder / "test.txt", "--test", folder / "test.txt",
        "--entity-to-id", names["entity"], "--relation-to-id", names["relation"], "--trust-pickle", "--device", "cpu",
        "--embedding-height", "3", "--embedding-width", "4", "-o", folder / "out.json",
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["entity", "relation"])
@pytest.mark.parametrize("model", ["", "trained_model.pkl", "state_dict.pt"])
def test_other_mappings_than_the_models_are_refused(folder, model, kind):
    message = assert_refused(run(*arguments(folder, model, **{kind: swapped(folder, kind)})))
    name = model or "trained_model.pkl"
    assert message.startswith(f"{folder / name}: was trained with another {kind} mapping than the one given; use the")
    assert run(*arguments(folder, model)).code == 0


def test_a_converted_model_keeps_the_mappings_of_its_directory(folder):
    converted = folder.parent / "native.pt"
    done = run("convert_checkpoint", "--input", folder / "state_dict.pt", "--output", converted, "--to", "native",
               "--embedding-height", "3", "--embedding-width", "4")  # fmt: skip
    assert done.code == 0, done
    message = assert_refused(run(*arguments(folder, "../native.pt", entity=swapped(folder, "entity"))))
    assert "was trained with another entity mapping" in message


def test_the_triples_of_the_directory_are_read(folder):
    own = (
        "run_tracin", "--model-path", folder, "--test", folder / "test.txt", "--trust-pickle", "--device", "cpu",
        "--max-test-triples", "3", "--use-optimized-tracin", "--top-k", "5000", "-o", folder / "own.json",
    )  # fmt: skip
    done = run(*own)
    assert done.code == 0, done
    labels = folder / "labels.txt"
    np.savetxt(labels, training_factory().label_triples(training_factory().mapped_triples), fmt="%s", delimiter="\t")
    assert run(*own, "--train", labels, "-o", folder / "labels.json").code == 0
    one, other = (json.loads((folder / name).read_text())["results"] for name in ("own.json", "labels.json"))
    assert one == other
    assert len(one[0]["influences"]) == len(training_factory().mapped_triples)


def test_triples_of_ids_are_refused_with_other_mappings(folder):
    numeric = folder / "training_triples/numeric_triples.tsv.gz"
    paths = arguments(folder, "state_dict.pt", entity=swapped(folder, "entity"))
    message = assert_refused(run(*paths, "--train", numeric))
    assert "other" not in message.partition(":")[0]
    assert "holds ids of another entity mapping" in message or "was trained with another entity mapping" in message
    alone = folder.parent / "numeric_triples.tsv.gz"
    shutil.copy(numeric, alone)
    message = assert_refused(run(*arguments(folder, "state_dict.pt"), "--train", alone))
    assert message == f"{alone}: holds ids, and the mapping entity_to_id.tsv.gz is not beside it; give a file of labels"


def test_triples_are_asked_for_where_no_directory_brings_them(folder):
    shutil.rmtree(folder / "training_triples")
    message = assert_refused(run("run_tracin", "--model-path", folder, "--test", folder / "test.txt", "-o", "out.json"))
    assert message.startswith("--train is required")

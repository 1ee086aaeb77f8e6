"""The recipes of benchmarks/accuracy: settings that train_pytorch.py has, and results that are kept side by side."""

import json
import shutil
import tarfile

import pytest
import torch

import prepare_data
import train_pytorch
from benchmarks.accuracy import reproduce

RECIPES = sorted(path.stem for path in reproduce.RECIPES.glob("*.json"))
FILES = [
    part
    for name in ("train", "valid", "test", "entity-to-id", "relation-to-id", "output-dir")
    for part in (f"--{name}", name)
]


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_settings_of_training_under_their_full_names(name):
    for stage in reproduce.stages_of(reproduce.read_recipe(name)):
        settings = vars(train_pytorch.build_parser().parse_args([*FILES, *reproduce.flags(stage)]))
        for flag, value in stage.items():
            assert settings[flag.replace("-", "_")] == value


def test_what_is_recommended_for_another_size_can_be_trained(tmp_path):
    for name, lines in (("train.txt", 3), ("entity_to_id.tsv", 2)):
        (tmp_path / name).write_text("a\tr\tb\n" * lines)
    of_its_size, of_millions = (reproduce.recommended_settings(tmp_path, as_for) for as_for in (None, 20_000_000))
    parsed = train_pytorch.build_parser().parse_args([*FILES, *reproduce.flags(of_millions)])
    assert of_its_size["batch-size"] == 128
    assert (parsed.embedding_dim, parsed.num_epochs, parsed.eval_frequency) == (32, 25, 5)


STAGES = {
    "embedding-dim": 6, "embedding-height": 2, "embedding-width": 3, "output-channels": 2, "batch-size": 4,
    "training-approach": "kvsall", "loss": "ce", "num-epochs": 2, "checkpoint-frequency": 1, "no-gpu": True,
    "then": {"label-smoothing": 0, "num-epochs": 4, "then": {"output-dropout": 0, "num-epochs": 5}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("num_epochs", "expected"),
    [
        (None, [(2, None, None), (4, 0, None), (5, 0, 0)]),
        (1, [(1, None, None)]),
        (2, [(2, None, None)]),
        (3, [(2, None, None), (3, 0, None)]),
        (4, [(2, None, None), (4, 0, None)]),
        (9, [(2, None, None), (4, 0, None), (9, 0, 0)]),
    ],
)
def test_fewer_epochs_end_within_the_stage_that_they_reach(num_epochs, expected):
    stages = reproduce.stages_of(STAGES, num_epochs)
    flags = ("num-epochs", "label-smoothing", "output-dropout")
    assert [tuple(map(stage.get, flags)) for stage in stages] == expected
    assert all(stage["loss"] == "ce" and "then" not in stage for stage in stages)


@pytest.mark.slow
def test_each_stage_resumes_from_the_one_before_and_a_run_that_was_stopped_within_it_ends_the_same(
    graph_files, tmp_path
):
    data = tmp_path / "data"
    data.mkdir()
    for split in reproduce.SPLITS:
        shutil.copy(getattr(graph_files, split), data / f"{split}.txt")
    for name in ("entity_to_id", "relation_to_id"):
        shutil.copy(getattr(graph_files, name), data / f"{name}.tsv")

    def checkpoint(model, epoch):
        return torch.load(tmp_path / model / "checkpoints" / f"checkpoint_epoch_{epoch}.pt", weights_only=True)

    result = reproduce.train(reproduce.stages_of(STAGES), data, tmp_path / "whole")
    assert result["epochs"] == 5
    whole = [checkpoint("whole", epoch) for epoch in range(1, 6)]
    assert [epoch["training_config"]["label_smoothing"] for epoch in whole] == [0.1, 0.1, 0, 0, 0]
    assert [epoch["model_config"]["output_dropout"] for epoch in whole] == [0.3, 0.3, 0.3, 0.3, 0]

    reproduce.train(reproduce.stages_of(STAGES, 3), data, tmp_path / "stopped")
    again = reproduce.train(reproduce.stages_of(STAGES), data, tmp_path / "stopped")
    for name, weights in checkpoint("whole", 5)["model_state_dict"].items():
        assert torch.equal(checkpoint("stopped", 5)["model_state_dict"][name], weights), name
    assert {name: again[name] for name in reproduce.METRICS} == {name: result[name] for name in reproduce.METRICS}


@pytest.mark.parametrize(
    "given",
    [
        "umls", "umls --num-epochs 2", "nations --random-seed 7", "umls --random-seed 42",
        "mine --recommended --with entity-sample 9 --with loss ce",
    ],
)  # fmt: skip
def test_the_command_of_a_result_gives_it_again(given):
    words = reproduce.command_of(
        reproduce.parse_args([*given.split(), "--data", "here", "--output-dir", "there"])
    ).split()
    assert words[:2] == ["python", "benchmarks/accuracy/reproduce.py"]
    names = ("recipe", "recommended", "changes", "num_epochs", "random_seed")
    again, first = (vars(reproduce.parse_args(arguments)) for arguments in (words[2:], given.split()))
    assert {name: again[name] for name in names} == {name: first[name] for name in names}


def test_a_name_without_a_recipe_needs_the_recommended_training(capsys):
    with pytest.raises(SystemExit):
        reproduce.parse_args(["mine"])
    assert "there is no recipe mine; give one of fb15k-237, french-royalty, " in capsys.readouterr().err


def test_what_is_recommended_is_what_preparing_advises(graph_files, tmp_path, capsys):
    splits = [str(getattr(graph_files, split)) for split in reproduce.SPLITS]
    prepare_data.main(["--triples", *splits, "--output-dir", str(tmp_path / "data")])
    (command,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Next: ")]
    settings = reproduce.recommended_settings(tmp_path / "data")
    assert settings.pop("eval-frequency") == 5
    assert command.endswith(" ".join(reproduce.flags(settings)))


def test_a_seeds_result_stands_beside_the_others(tmp_path, capsys):
    path = tmp_path / "accuracy.json"
    reproduce.record(path, "umls", {"seed": 1, "hits@10": 0.5})
    reproduce.record(path, "nations", {"seed": 1, "hits@10": 0.75})
    reproduce.record(path, "umls", {"seed": 2, "hits@10": 0.25})
    expected = {
        "umls": {"1": {"seed": 1, "hits@10": 0.5}, "2": {"seed": 2, "hits@10": 0.25}},
        "nations": {"1": {"seed": 1, "hits@10": 0.75}},
    }
    assert json.loads(path.read_text()) == expected
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == expected


def test_an_archives_splits_are_found_in_its_folders_and_nothing_else_is_written(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("train.txt", "valid.txt", "test.txt", "readme.md"):
        (source / name).write_text(f"{name}\n")
    with tarfile.open(tmp_path / "published.tar.gz", "w:gz") as archive:
        archive.add(source, arcname="somewhere/else")
    folder = reproduce.unpack(tmp_path / "published.tar.gz", tmp_path / "unpacked")
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        name: f"{name}\n" for name in ("train.txt", "valid.txt", "test.txt")
    }

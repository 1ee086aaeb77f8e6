"""The recipes of benchmarks/accuracy: settings that train_pytorch.py has, and results that are kept side by side."""

import json
import tarfile

import pytest

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
    recipe = reproduce.read_recipe(name)
    settings = vars(train_pytorch.build_parser().parse_args([*FILES, *reproduce.flags(recipe)]))
    for flag, value in recipe.items():
        assert settings[flag.replace("-", "_")] == value


@pytest.mark.parametrize("given", ["umls", "umls --num-epochs 2", "nations --random-seed 7", "umls --random-seed 42"])
def test_the_command_of_a_result_gives_it_again(given):
    words = reproduce.command_of(
        reproduce.parse_args([*given.split(), "--data", "here", "--output-dir", "there"])
    ).split()
    assert words[:2] == ["python", "benchmarks/accuracy/reproduce.py"]
    names = ("recipe", "num_epochs", "random_seed")
    again, first = (vars(reproduce.parse_args(arguments)) for arguments in (words[2:], given.split()))
    assert {name: again[name] for name in names} == {name: first[name] for name in names}


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

"""Outputs that are unusable, or that would replace an input, are refused before the work."""

import os

import pytest

from conve_tracin.errors import InputError
from conve_tracin.files import require_usable_outputs


@pytest.fixture
def train(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text("a\tb\tc\n")
    return path


def test_usable_outputs_pass(tmp_path, train):
    outputs = {"--output": tmp_path / "new" / "deep" / "out.json", "--report": None, "--csv-output": "out.csv"}
    require_usable_outputs(outputs, directory=("--output-dir", tmp_path / "many"), inputs=[train, None, tmp_path])
    assert sorted(tmp_path.iterdir()) == [train]


@pytest.mark.parametrize("name", ["train.txt", "folder/../train.txt", "linked.txt", "folder/also linked.txt"])
def test_an_input_is_not_replaced(tmp_path, train, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "linked.txt").symlink_to(train)
    os.link(train, tmp_path / "folder" / "also linked.txt")
    with pytest.raises(InputError, match=r"is an input, which --output would replace"):
        require_usable_outputs({"--output": tmp_path / name}, inputs=[train])


def test_models_of_an_input_directory_are_not_replaced(tmp_path):
    (tmp_path / "model" / "deep").mkdir(parents=True)
    (tmp_path / "model" / "deep" / "weights.pt").touch()
    (tmp_path / "model" / "out.json").touch()
    require_usable_outputs({"--output": tmp_path / "model" / "out.json"}, inputs=[tmp_path / "model"])
    with pytest.raises(InputError, match="is an input"):
        require_usable_outputs(
            {"--output": tmp_path / "model" / "deep" / "weights.pt"}, inputs=[str(tmp_path / "model")]
        )


@pytest.mark.parametrize(
    ("files", "directory", "message"),
    [
        ({"--report": "folder"}, None, r"folder: is a directory; --report needs a file"),
        ({"--output": "train.txt/out.json"}, None, r"out\.json: cannot be written, as .*train\.txt is a file"),
        ({"--output": "a/../out", "--report": "out"}, None, "--output and --report name the same file"),
        ({}, "train.txt", r"train\.txt: is a file; --output-dir needs a directory"),
        ({}, "train.txt/more", r"more: cannot be written, as .*train\.txt is a file"),
    ],
)
def test_unusable_outputs_are_named(tmp_path, train, files, directory, message):
    (tmp_path / "folder").mkdir()
    placed = {flag: tmp_path / name for flag, name in files.items()}
    with pytest.raises(InputError, match=message):
        require_usable_outputs(placed, directory=directory and ("--output-dir", tmp_path / directory))
    assert train.exists()


def test_a_place_without_permission_is_named(tmp_path, monkeypatch):
    # Root may write anywhere, so the permission is taken away here and not in the file system.
    monkeypatch.setattr(os, "access", lambda path, _: os.fspath(path) != os.fspath(tmp_path))
    with pytest.raises(InputError, match=r"out\.json: cannot be written, as .* is not writable"):
        require_usable_outputs({"--output": tmp_path / "new" / "out.json"})

"""Files appear whole or not at all."""

import json
import os

import pytest
import torch

from conve_tracin.checkpoint import save_checkpoint
from conve_tracin.errors import InputError
from conve_tracin.files import atomic_write, write_json


def everything_below(directory):
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def test_json_is_written_into_a_new_directory(tmp_path):
    write_json(tmp_path / "new" / "deep" / "names.json", {"name": "fièvre"})
    assert everything_below(tmp_path) == ["new", "new/deep", "new/deep/names.json"]
    text = (tmp_path / "new/deep/names.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"name": "fièvre"}
    assert "fièvre" in text


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, RuntimeError])
def test_a_failure_half_way_keeps_the_old_file_and_leaves_nothing_beside_it(tmp_path, error):
    path = tmp_path / "model.pt"
    path.write_bytes(b"old")
    with pytest.raises(error), atomic_write(path) as temporary:  # noqa: PT012
        temporary.write_bytes(b"new, but only ha")
        raise error
    assert everything_below(tmp_path) == ["model.pt"]
    assert path.read_bytes() == b"old"


def test_an_unwritable_content_keeps_the_old_checkpoint(tmp_path):
    path = tmp_path / "model.pt"
    save_checkpoint(path, {"epoch": 1})
    with pytest.raises((AttributeError, TypeError)):
        save_checkpoint(path, {"epoch": 2, "state": lambda: None})
    assert everything_below(tmp_path) == ["model.pt"]
    assert torch.load(path, weights_only=True) == {"epoch": 1}


def test_a_directory_in_the_place_of_the_file_is_said(tmp_path):
    (tmp_path / "out.json").mkdir()
    with pytest.raises(InputError, match=r"out\.json: is a directory"):
        write_json(tmp_path / "out.json", {})


def test_a_file_in_the_place_of_the_directory_is_said(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_json(tmp_path / "out" / "config.json", {})


def test_a_full_disk_is_said_and_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    save_checkpoint(path, {"epoch": 1})

    def no_space(_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(InputError, match=r"model\.pt: cannot be written"):
        save_checkpoint(path, {"epoch": 2})
    assert everything_below(tmp_path) == ["model.pt"]
    assert torch.load(path, weights_only=True) == {"epoch": 1}

"""Files appear whole or not at all."""

import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from conve_tracin.checkpoint.native import save_checkpoint
from conve_tracin.errors import InputError
from conve_tracin.files import atomic_write, json_text_of_many, write_json


def everything_below(directory):
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def test_json_is_written_into_a_new_directory(tmp_path):
    write_json(tmp_path / "new" / "deep" / "names.json", {"name": "fièvre"})
    assert everything_below(tmp_path) == ["new", "new/deep", "new/deep/names.json"]
    text = (tmp_path / "new/deep/names.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"name": "fièvre"}
    assert "fièvre" in text


@pytest.mark.parametrize("members", [[], [{"name": "fièvre\u2028\n", "ids": [1, []]}], [1, [], {}, [{"a": {}}]]])
def test_a_list_written_a_member_at_a_time_is_the_same_text(members):
    content = {"mode": "test", "checkpoints": ["a", "b"], "top_k": 3}
    text = "".join(json_text_of_many(content, "results", iter(members)))
    assert text == json.dumps(content | {"results": members}, indent=2, ensure_ascii=False) + "\n"


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


# ---------------------------------------------------------------------------------------------------------------
# What killed processes leave


@pytest.fixture
def ended_process():
    """Return the id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_the_part_of_a_killed_process_is_removed_by_the_next_write_of_the_same_file(tmp_path, ended_process):
    (tmp_path / f".model [1].pt.{ended_process}.part").write_bytes(b"half")
    with atomic_write(tmp_path / "model [1].pt") as temporary:
        assert everything_below(tmp_path) == []
        temporary.write_bytes(b"whole")
    assert everything_below(tmp_path) == ["model [1].pt"]


def test_parts_of_running_processes_and_of_other_files_stay(tmp_path, ended_process):
    others = [
        f".model.pt.{os.getppid()}.part", ".model.pt.1.part", ".model.pt.backup.part", f".model.pt.{10**30}.part",
        f".model.{ended_process}.part", f".model.pt.old.{ended_process}.part",
    ]  # fmt: skip
    for name in others:
        (tmp_path / name).write_bytes(b"half")
    save_checkpoint(tmp_path / "model.pt", {"epoch": 1})
    # A set: the parent of a run that goes on in the background is process 1.
    assert everything_below(tmp_path) == sorted({*others, "model.pt"})


# ---------------------------------------------------------------------------------------------------------------
# What is no regular file


def test_a_pipe_is_written_into_and_stays_one(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    received = []
    reader = threading.Thread(target=lambda: received.append(path.read_text()), daemon=True)
    reader.start()
    write_json(path, {"epoch": 1})
    assert stat.S_ISFIFO(path.stat().st_mode)
    reader.join(timeout=30)
    assert json.loads(received[0]) == {"epoch": 1}
    assert everything_below(tmp_path) == ["pipe"]


def test_a_device_is_written_into_and_stays_one(tmp_path):
    # A link of our own, since a mistake here would take /dev/null from the machine.
    (tmp_path / "nothing").symlink_to("/dev/null")
    with atomic_write(tmp_path / "nothing") as temporary:
        assert temporary == tmp_path / "nothing"
        temporary.write_bytes(b"gone")
    assert (tmp_path / "nothing").readlink() == Path("/dev/null")
    assert everything_below(tmp_path) == ["nothing"]


def test_an_open_file_is_written_into_even_where_it_is_a_regular_one(tmp_path):
    with (tmp_path / "redirected").open("wb") as file:
        # On Linux /dev/fd leads to /proc.
        (tmp_path / "stdout").symlink_to(f"/dev/fd/{file.fileno()}")
        resolved = Path("/dev/fd").resolve() / str(file.fileno())
        for place in (tmp_path / "stdout", Path(f"/dev/fd/{file.fileno()}"), resolved):
            write_json(place, {"epoch": 1})
            assert os.fstat(file.fileno()).st_size == len('{\n  "epoch": 1\n}\n')
    assert (tmp_path / "stdout").is_symlink()
    assert everything_below(tmp_path) == ["redirected", "stdout"]


def test_a_link_stays_one_and_its_target_is_replaced_whole(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store/a.json").write_text("old")
    (tmp_path / "link.json").symlink_to("store/a.json")
    with pytest.raises(ValueError, match="half"), atomic_write(tmp_path / "link.json") as temporary:  # noqa: PT012
        temporary.write_text("ne")
        raise ValueError("half")
    assert (tmp_path / "store/a.json").read_text() == "old"
    write_json(tmp_path / "link.json", {"epoch": 2})
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads((tmp_path / "store/a.json").read_text()) == {"epoch": 2}
    assert everything_below(tmp_path) == ["link.json", "store", "store/a.json"]

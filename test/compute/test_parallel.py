"""What several processes share, and influence on them: two give what one process gives."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from influence_examples import TRAINING, make_model
from native_files import files  # noqa: F401 - a fixture
from several_processes import ROOT, run_processes
from shared_work import TRIPLES

from conve_tracin.compute import parallel
from conve_tracin.compute.device import own_gpu
from conve_tracin.compute.parallel import obstacle_to_several_gpus, split_by_query
from conve_tracin.errors import InputError


def inputs(files, mapping_files=True):
    torch.save(
        {
            "model_state_dict": make_model(dtype=torch.float32).state_dict(),
            "model_config": make_model().config.as_dict(),
        },
        files["model.pt"],
    )
    return [
        *("--model-path", files["model.pt"], "--train", files["train.txt"], "--device", "cpu"),
        *("--entity-to-id", files["entities.tsv"], "--relation-to-id", files["relations.tsv"], "--top-k", 12),
    ]


def scores_of(path, key, member):
    rows = json.loads(Path(path).read_text(encoding="utf-8"))
    for part in key:
        rows = rows[part]
    return {(row["train_head"], row["train_relation"], row["train_tail"]): row[member] for row in rows}


@pytest.mark.parametrize("count", [1, 2, 5, 20])
def test_shares_cover_every_triple_once(count):
    shares = split_by_query(TRAINING, count)
    assert len(shares) == count
    assert sorted(np.concatenate(shares).tolist()) == list(range(len(TRAINING)))


@pytest.mark.parametrize("method", ["tracin", "gauss-newton"])
def test_tracin_pytorch_on_two_processes(files, tmp_path, method):
    (tmp_path / "tests.txt").write_text("0 1 2\n4 2 0\n")
    command = [ROOT / "tracin_pytorch.py", *inputs(files), "--test-triples", tmp_path / "tests.txt"]
    command += ["--method", method, "--index-dir", tmp_path / "index"]
    for number, name in ((1, "one"), (2, "two")):
        assert run_processes(number, *command, "--output-dir", tmp_path / name).returncode == 0
    for name in ("triple_0_1_2.json", "triple_4_2_0.json"):
        one, two = (scores_of(tmp_path / run_name / name, ["influences"], "influence") for run_name in ("one", "two"))
        assert two == pytest.approx(one, rel=1e-5, abs=1e-9)


def test_self_influence_on_two_processes(files, tmp_path):
    command = [ROOT / "run_tracin.py", *inputs(files), "--mode", "self", "--use-optimized-tracin", "--output"]
    for number, name in ((1, "one.json"), (2, "two.json")):
        assert run_processes(number, *command, tmp_path / name).returncode == 0
    one, two = (scores_of(tmp_path / name, ["self_influences"], "self_influence") for name in ("one.json", "two.json"))
    assert len(one) == 11  # twelve triples, one of them twice
    assert two == pytest.approx(one, rel=1e-5)


def test_all_processes_see_the_same():
    done = run_processes(3, ROOT / "test/helpers/shared_work.py")
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert [one.pop("rank") for one in seen] == [0, 1, 2]
    assert [one.pop("share of a batch") for one in seen] == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert (
        seen
        == [
            {
                "announced": {"of": 0},
                "sum": [3.0, 30.0],
                "computed": TRIPLES.T.tolist(),
                "statistics": [1.0, 2.0],
                "batches": 100,
                "copied": [-7.0, -7.0, 5],
            }
        ]
        * 3
    )


# ---------------------------------------------------------------------------------------------------------------
# GPUs, without one


@pytest.mark.parametrize(
    ("device", "gpus", "obstacle"),
    [
        ("auto", 0, "no GPU is visible here"),
        ("auto", 1, "one GPU is visible here, which one process uses"),
        ("cpu", 8, "--device cpu names one device"),
        ("cuda:1", 8, "--device cuda:1 names one device"),
        ("auto", 2, None),
        ("cuda", 2, None),
    ],
)
def test_one_process_runs_on_where_several_have_no_effect(device, gpus, obstacle):
    assert obstacle_to_several_gpus(device=device, gpus=gpus) == obstacle
    if obstacle is not None:
        assert parallel.start_on_all_gpus(device=device, gpus=gpus) is None


def test_one_of_several_processes_starts_no_more_of_them(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert parallel.start_on_all_gpus(device="auto", gpus=2) is None


START = """
import sys
from conve_tracin import cli
from conve_tracin.compute import parallel
sys.argv = sys.argv[1:]
cli.run(lambda: sys.exit(parallel.start_on_all_gpus(device="auto", gpus=2)))
"""


def start_on_two_gpus(command):
    return subprocess.run(
        [str(part) for part in (sys.executable, "-c", START, *command)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("script", ["run_tracin.py", "tracin_pytorch.py"])
def test_what_enable_multi_gpu_starts_gives_the_output_of_one_process(files, tmp_path, script):
    (tmp_path / "tests.txt").write_text("0 1 2\n4 2 0\n")
    command = [ROOT / script, *inputs(files), "--test-triples", tmp_path / "tests.txt", "--enable-multi-gpu"]
    more = {
        "tracin_pytorch.py": ["--output-dir"],
        "run_tracin.py": ["--use-optimized-tracin", "--output-per-triple", "-o"],
    }
    alone = run_processes(1, *command, *more[script], tmp_path / "one")
    assert alone.returncode == 0, alone.stderr
    assert "--enable-multi-gpu has no effect: --device cpu names one device" in alone.stderr
    done = start_on_two_gpus([*command, *more[script], tmp_path / "two"])
    assert done.returncode == 0, done.stderr
    assert "no effect" not in done.stderr
    assert done.stdout.replace("/two", "/one") == alone.stdout
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(names) == 2
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == names
    for name in names:
        one, two = (scores_of(tmp_path / number / name, ["influences"], "influence") for number in ("one", "two"))
        assert two == pytest.approx(one, rel=1e-5, abs=1e-9)


def test_what_enable_multi_gpu_starts_ends_with_the_exit_code_and_the_one_line_of_bad_input(files, tmp_path):
    files["train.txt"].write_text("0\t1\n")
    command = ["run_tracin.py", *inputs(files), "--mode", "self", "--output", tmp_path / "out.json"]
    done = start_on_two_gpus(command)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "train.txt:1: " in done.stderr


def test_each_process_of_a_machine_has_a_gpu_of_its_own(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert [own_gpu(device) for device in ("cuda", "cpu", "cuda:0")] == ["cuda:1", "cpu", "cuda:0"]
    assert chosen == [1]
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(InputError, match="this machine has 2 GPUs, fewer than processes"):
        own_gpu("cuda")


@pytest.mark.parametrize(
    ("device", "count", "is_synchronized"), [("cuda", 2, True), ("cuda", 1, False), ("cpu", 2, False)]
)
def test_batch_norm_is_synchronized_between_gpus_alone(monkeypatch, device, count, is_synchronized):
    monkeypatch.setattr(parallel, "world_size", lambda: count)
    assert parallel.synchronizes_batch_norm(torch.device(device)) is is_synchronized

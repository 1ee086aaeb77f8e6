"""Two processes under torchrun give what one process gives."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_cli_tracin import files  # noqa: F401 - a fixture
from test_influence import TRAINING, make_model

from conve_tracin.influence.distributed import split_by_query

ROOT = Path(__file__).parents[1]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def run(command):
    subprocess.run([*map(str, command)], check=True, capture_output=True, text=True, cwd=ROOT)


def inputs(files, mapping_files=True):  # noqa: F811
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


def test_tracin_pytorch_on_two_processes(files, tmp_path):  # noqa: F811
    (tmp_path / "tests.txt").write_text("0 1 2\n4 2 0\n")
    command = [ROOT / "tracin_pytorch.py", *inputs(files), "--test-triples", tmp_path / "tests.txt"]
    run([sys.executable, *command, "--output-dir", tmp_path / "one"])
    run([*TORCHRUN, *command, "--output-dir", tmp_path / "two"])
    for name in ("triple_0_1_2.json", "triple_4_2_0.json"):
        one, two = (scores_of(tmp_path / run_name / name, ["influences"], "influence") for run_name in ("one", "two"))
        assert two == pytest.approx(one, rel=1e-5, abs=1e-9)


def test_self_influence_on_two_processes(files, tmp_path):  # noqa: F811
    command = [ROOT / "run_tracin.py", *inputs(files), "--mode", "self", "--use-optimized-tracin", "--output"]
    run([sys.executable, *command, tmp_path / "one.json"])
    run([*TORCHRUN, *command, tmp_path / "two.json"])
    one, two = (scores_of(tmp_path / name, ["self_influences"], "self_influence") for name in ("one.json", "two.json"))
    assert len(one) == 11  # twelve triples, one of them twice
    assert two == pytest.approx(one, rel=1e-5)

"""Runs of train_pytorch.py, and what must be equal in two of them."""

import sys

import pytest
import torch

import train_pytorch
from conve_tracin import cli

SMALL_MODEL = (
    "--embedding-dim", "12", "--embedding-height", "3", "--embedding-width", "4", "--output-channels", "4",
    "--kernel-height", "2", "--kernel-width", "3",
)  # fmt: skip

QUICK = (*SMALL_MODEL, "--num-epochs", "2", "--batch-size", "4", "--no-gpu")


def run_main(monkeypatch, *arguments):
    """Run the script in this process as the shell would; returns the exit code."""
    monkeypatch.setattr(sys, "argv", ["train_pytorch.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.run(train_pytorch.main)
    return stop.value.code


def files_below(directory):
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


def checkpoint_of(path):
    return torch.load(path, weights_only=True)


def assert_same_training(path, other):
    """Compare two checkpoints bit for bit, leaving out how long epochs took and how many were asked for."""
    left, right = checkpoint_of(path), checkpoint_of(other)
    assert left.keys() == right.keys()
    for content in (left, right):
        del content["training_config"]["num_epochs"]
        for record in content["history"]:
            del record["seconds"]
    assert_identical(left, right)


def assert_identical(left, right):
    assert type(left) is type(right)
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_identical(left[key], right[key])
    elif isinstance(left, list):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_identical(one, other)
    elif isinstance(left, torch.Tensor):
        assert torch.equal(left, right)
    else:
        assert left == right


NO_DROPOUT = {"input_dropout": 0.0, "feature_map_dropout": 0.0, "output_dropout": 0.0}

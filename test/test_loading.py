"""Which files the paths of --model-path stand for."""

import pytest
import torch

from conve_tracin.errors import InputError
from conve_tracin.influence.loading import find_checkpoints


def history(*losses):
    return [{"epoch": epoch, "loss": loss} for epoch, loss in enumerate(losses, start=1)]


@pytest.fixture
def save(tmp_path):
    def saver(name, **content):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return saver


def test_a_directory_stands_for_its_epochs_in_order(save, tmp_path):
    nan = float("nan")
    last = save("checkpoint_epoch_10.pt", history=history(0.5, nan, 0.3))
    foreign = save("checkpoint_epoch_4_pykeen.pt", model_state_dict={})
    first = save("checkpoint_epoch_2.pt", history=history(0.5, float("nan")))
    save("best_model.pt", history=history(0.9))
    assert find_checkpoints([tmp_path]) == [first, foreign, last]
    assert find_checkpoints([str(last), first]) == [last, first]


def test_a_directory_of_a_pipeline_stands_for_its_model(save, tmp_path):
    model = save("trained_model.pkl")
    save("checkpoint_epoch_2.pt")
    assert find_checkpoints([tmp_path]) == [model]


def test_checkpoints_of_two_runs_are_no_series(save, tmp_path):
    save("checkpoint_epoch_2.pt", history=history(0.5, 0.4))
    save("checkpoint_epoch_3.pt")
    save("checkpoint_epoch_4.pt", history=history(0.6, 0.4, 0.3, 0.2))
    with pytest.raises(InputError, match=r"checkpoint_epoch_4\.pt: is of another training run"):
        find_checkpoints([tmp_path])
    # Models of several runs may add up, where each is named.
    assert len(find_checkpoints([tmp_path / "checkpoint_epoch_2.pt", tmp_path / "checkpoint_epoch_4.pt"])) == 2


def test_a_checkpoint_and_its_conversion_are_one_epoch(save, tmp_path):
    save("checkpoint_epoch_2.pt")
    save("checkpoint_epoch_2_pykeen.pt")
    with pytest.raises(InputError, match=r"checkpoint_epoch_2_pykeen\.pt: is of the same epoch as"):
        find_checkpoints([tmp_path])


def test_a_checkpoint_counts_once(save, tmp_path):
    checkpoint = save("checkpoint_epoch_2.pt")
    (tmp_path / "link.pt").symlink_to(checkpoint)
    for again in (checkpoint, tmp_path, tmp_path / "link.pt"):
        with pytest.raises(InputError, match="is named twice"):
            find_checkpoints([checkpoint, again])

"""Which files the paths of --model-path stand for."""

import datetime
import json
from pathlib import Path

import pytest
import torch
from command_lines import run
from project_files import COMMANDS, clean, project  # noqa: F401 - fixtures

from conve_tracin.checkpoint.conversion import convert_pytorch_to_pykeen_state_dict
from conve_tracin.errors import InputError
from conve_tracin.influence.load import choose_learning_rates, find_checkpoints
from conve_tracin.settings import TracInOptions


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


def test_each_checkpoint_of_several_has_its_own_rate_where_it_tells_it(save):
    checkpoints = [
        save("a.pt", learning_rate=0.5),
        save("b.pt", optimizer_state_dict={"state": {}, "param_groups": [{"lr": 0.25, "params": []}]}),
        save("c.pt", epoch=3),
        save("d.pt", learning_rate=0.125, when=datetime.datetime(2020, 1, 1)),
    ]
    trusting, given, wary = (
        TracInOptions(model_path=checkpoints, train="", output="", mode="self", **more)
        for more in ({"trust_pickle": True}, {"learning_rate": 0.1}, {})
    )
    assert choose_learning_rates(checkpoints, trusting) == [0.5, 0.25, 0.001, 0.125]
    assert choose_learning_rates(checkpoints, given) == [0.1] * 4
    assert choose_learning_rates(checkpoints[:1], wary) == [0.001]
    with pytest.raises(InputError, match=r"d\.pt: holds more than tensors and plain values"):
        choose_learning_rates(checkpoints, wary)


@pytest.mark.parametrize(
    "origin", ["bare weights of PyKEEN", "a native checkpoint that does not say how it was trained"]
)
def test_a_conversion_has_the_influences_of_its_origin(project, origin):
    native = torch.load("model.pt", weights_only=True)
    to = "native" if origin.startswith("bare") else "pykeen"
    sizes = ("--embedding-height", native["model_config"]["embedding_height"])
    if to == "native":
        torch.save(convert_pytorch_to_pykeen_state_dict(native), "origin.pt")
    else:
        torch.save({name: native[name] for name in ("model_state_dict", "model_config")}, "origin.pt")
    assert run("convert_checkpoint", "--input", "origin.pt", "--output", "other.pt", "--to", to, *sizes).code == 0
    found = []
    for path in ("origin.pt", "other.pt"):
        done = run(*COMMANDS["run"], "--model-path", path, "--method", "gauss-newton", "--top-k", "99", *sizes)
        assert done.code == 0, done
        results = json.loads(Path("out/influences.json").read_text())["results"]
        found.append({(row["train_head"], row["train_relation"], row["train_tail"]): row["influence"]
                      for row in results[0]["influences"]})  # fmt: skip
    assert found[0] == pytest.approx(found[1], rel=1e-5, abs=1e-8)

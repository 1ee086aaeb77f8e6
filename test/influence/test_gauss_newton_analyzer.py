"""The Gauss–Newton method through the command lines: what they write are the formula's scores."""

import json
from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest
import torch
from influence_examples import TEST_TRIPLES, TRAINING, make_model
from native_files import arguments, files, save_model  # noqa: F401 - `files` is a fixture

import run_tracin
import tracin_pytorch
from conve_tracin.checkpoint.conversion import to_pykeen_checkpoint
from conve_tracin.influence.effects import GaussNewtonMethod, gauss_newton_effects
from conve_tracin.influence.gauss_newton import GaussNewton
from conve_tracin.influence.method import rank_influences

ONE_TARGET = GaussNewtonMethod.for_training("1vsall", damping=2.0)


def effects(model, method=ONE_TARGET):
    return gauss_newton_effects(model, TEST_TRIPLES, TRAINING, method).numpy()


def listed_effects(model, method=ONE_TARGET):
    """The effects of the distinct triples, as a run lists them: 1vsAll trains a repeated one as often as it stands."""
    distinct = np.array(list(dict.fromkeys(map(tuple, TRAINING.tolist()))))
    if not method.curvature.repeated_triples_count:
        return gauss_newton_effects(model, TEST_TRIPLES, distinct, method).numpy()
    return effects(model, method)[:, [TRAINING.tolist().index(list(triple)) for triple in distinct]]


def assert_influences(influences, expected):
    order = np.argsort(-np.abs(expected), kind="stable")[: len(influences)]
    np.testing.assert_allclose([row["influence"] for row in influences], expected[order], rtol=1e-4)


def test_tracin_pytorch_sums_up_to_the_mean_over_checkpoints(files, tmp_path, capsys):
    other = make_model(dtype=torch.float32)
    with torch.no_grad():
        other.entity_embeddings.weight.mul_(0.5)
    save_model(tmp_path / "other.pt", other)
    flags = ["--test-triple", "0", "1", "2", "--output", str(files["out.json"])]
    flags += ["--method", "gauss-newton", "--damping", "2"]
    tracin_pytorch.main(arguments(files, *flags, model=[files["model.pt"], tmp_path / "other.pt"]))
    content = json.loads(files["out.json"].read_text(encoding="utf-8"))
    assert (content["method"], content["damping"]) == ("gauss-newton", 2.0)
    assert "aspirin — causes → café (explained by Gauss–Newton, damping 2)" in capsys.readouterr().out
    expected = (listed_effects(make_model(dtype=torch.float32)) + listed_effects(other)) / 2
    assert_influences(content["influences"], expected[0])


def test_run_tracin_takes_the_constants_of_the_checkpoints_training(files, tmp_path):
    save_model(files["model.pt"], make_model(dtype=torch.float32), training_config={"training_approach": "kvsall"})
    (tmp_path / "test.txt").write_text("aspirin\tcauses\tcafé\n", encoding="utf-8")
    command = arguments(files, "--test", str(tmp_path / "test.txt"), "--output", str(files["out.json"]))
    run_tracin.main([*command, "--method", "gauss-newton", "--top-k", "5"])
    (result,) = json.loads(files["out.json"].read_text(encoding="utf-8"))["results"]
    method = GaussNewtonMethod.for_training("kvsall")
    assert result["method"] == "gauss-newton"
    assert_influences(result["influences"], listed_effects(make_model(dtype=torch.float32), method)[0])


@pytest.mark.parametrize("group", [1, 3])
def test_curvatures_are_kept_between_groups_of_test_triples(group):
    method = GaussNewton(make_model(), training_approach="1vsall", damping=2.0)
    parts = [method.products(TEST_TRIPLES[i : i + group], TRAINING) for i in range(0, len(TEST_TRIPLES), group)]
    np.testing.assert_allclose(torch.cat(parts).numpy(), effects(make_model()), rtol=1e-5)


def test_self_influence_is_the_effect_on_the_own_score():
    # Without the terms beside the curvature, a triple's leverage is its effect on itself as a test triple.
    model = make_model()
    method = GaussNewton(model, training_approach="1vsall")
    rest = ("curvature", "relation_moves")
    plain = replace(ONE_TARGET, **{term.name: 0.0 for term in fields(ONE_TARGET) if term.name not in rest})
    plain = replace(plain, curvature=method.method.curvature)
    expected = gauss_newton_effects(model, TRAINING, TRAINING, plain).diagonal()
    np.testing.assert_allclose(method.self_products(TRAINING), expected, rtol=1e-4)


def test_listed_self_influences_are_those_of_the_whole_training_set(files, tmp_path):
    (tmp_path / "test.txt").write_text("aspirin\tcauses\tcafé\n", encoding="utf-8")
    command = [*arguments(files), "--method", "gauss-newton"]
    run_tracin.main(
        [
            *command,
            "--test",
            str(tmp_path / "test.txt"),
            "--output",
            str(files["out.json"]),
            "--top-k",
            "3",
            "--csv-output",
            str(tmp_path / "out.csv"),
        ]
    )
    run_tracin.main([*command, "--mode", "self", "--output", str(tmp_path / "self.json"), "--top-k", "12"])
    ranking = json.loads((tmp_path / "self.json").read_text(encoding="utf-8"))["self_influences"]
    own = {
        tuple(row[f"train_{part}_label"] for part in ("head", "relation", "tail")): row["self_influence"]
        for row in ranking
    }
    table = pd.read_csv(tmp_path / "out.csv")
    assert len(table) == 3
    for row in table.itertuples():
        expected = own[row.TrainHead_label, row.TrainRel_label, row.TrainTail_label]
        assert row.SelfInfluence == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("approach", ["1vsall", "kvsall"])
def test_a_checkpoint_and_its_conversion_score_alike(files, tmp_path, approach):
    save_model(files["model.pt"], make_model(dtype=torch.float32), training_config={"training_approach": approach})
    native = torch.load(files["model.pt"], weights_only=True)
    torch.save(to_pykeen_checkpoint(native), tmp_path / "converted.pt")
    (tmp_path / "test.txt").write_text("aspirin\tcauses\tcafé\n", encoding="utf-8")
    flags = ["--test", str(tmp_path / "test.txt"), "--output", str(files["out.json"]), "--method", "gauss-newton"]
    scores = []
    for model in (files["model.pt"], tmp_path / "converted.pt"):
        run_tracin.main(arguments(files, *flags, model=[model]))
        (result,) = json.loads(files["out.json"].read_text(encoding="utf-8"))["results"]
        scores.append([(row["train_head"], row["influence"]) for row in result["influences"]])
    assert [head for head, _ in scores[0]] == [head for head, _ in scores[1]]
    np.testing.assert_allclose([i for _, i in scores[0]], [i for _, i in scores[1]], rtol=1e-4)


@pytest.mark.parametrize(
    "training",
    [
        {"training_approach": "kvsall", "loss": "ce", "query_weights": "tails"},
        {"training_approach": "kvsall", "loss": "ce"},
        {"training_approach": "1vsall", "loss": "ce"},
        {"training_approach": "kvsall", "query_weights": "tails"},
    ],
)
def test_the_objective_of_the_checkpoint_chooses_the_method(files, caplog, training):
    save_model(files["model.pt"], make_model(dtype=torch.float32), training_config=training)
    test_file = files["out.json"].with_name("test.txt")
    test_file.write_text("aspirin\tcauses\tcafé\n", encoding="utf-8")
    command = arguments(files, "--test", str(test_file), "--output", str(files["out.json"]))
    with caplog.at_level("INFO"):
        run_tracin.main([*command, "--method", "gauss-newton", "--top-k", "5"])
    (result,) = json.loads(files["out.json"].read_text(encoding="utf-8"))["results"]
    settings = {"loss": training.get("loss", "bce"), "query_weights": training.get("query_weights", "equal")}
    method = GaussNewtonMethod.for_training(training["training_approach"], **settings)
    assert_influences(result["influences"], listed_effects(make_model(dtype=torch.float32), method)[0])
    assert "agreement with retraining" not in caplog.text


def test_effects_have_no_learning_rate():
    method = GaussNewton(make_model(), training_approach="1vsall", damping=2.0)
    assert not method.uses_learning_rate
    for row, expected in zip(method.products(TEST_TRIPLES, TRAINING), effects(make_model()), strict=True):
        assert_influences([influence.as_dict() for influence in rank_influences(row, TRAINING, 10)], expected)

"""A new method is one module that `settings.METHODS` names; both command lines then know it."""

import json

import numpy as np
import pytest
from influence_examples import TEST_TRIPLES, TRAINING, once_each
from native_files import arguments, files  # noqa: F401 - `files` is a fixture

import run_tracin
import tracin_pytorch
from conve_tracin.settings import METHODS


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(METHODS, "same-tail", "toy_method")


def expected_positions(test_triple):
    same = TRAINING[:, 2] == test_triple[2]
    return np.argsort(~same, kind="stable"), 2.0 * same


def triples_of(influences):
    return [(row["train_head"], row["train_relation"], row["train_tail"]) for row in influences]


@pytest.mark.usefixtures("toy")
def test_tracin_pytorch_runs_a_new_method(files, capsys, caplog):
    caplog.set_level("INFO")
    command = ["--test-triple", *map(str, TEST_TRIPLES[0]), "--output", str(files["out.json"]), "--method", "same-tail"]
    tracin_pytorch.main(arguments(files, *command, "--top-k", str(len(TRAINING))))
    content = json.loads(files["out.json"].read_text(encoding="utf-8"))
    training, scores, _ = once_each(TRAINING, expected_positions(TEST_TRIPLES[0])[1])
    order = np.argsort(-scores, kind="stable")
    assert (content["method"], content["toy"]) == ("same-tail", True)
    assert triples_of(content["influences"]) == [tuple(training[position]) for position in order]
    assert [row["influence"] for row in content["influences"]] == scores[order].tolist()
    assert "(explained by same tail)" in capsys.readouterr().out
    assert f"{len(TRAINING)} training triples" in caplog.text


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize("mode", ["test", "single", "self"])
def test_run_tracin_runs_a_new_method_in_every_mode(files, tmp_path, mode):
    listed = tmp_path / "test.txt"
    listed.write_text("aspirin\tcauses\tcafé\n", encoding="utf-8")
    more = {"test": [], "single": ["--test-indices", "0"], "self": []}[mode]
    given = [] if mode == "self" else ["--test", str(listed)]
    report = [] if mode == "self" else ["--report", str(tmp_path / "page.html")]
    command = arguments(files, *given, *more, *report, "--mode", mode, "--output", str(files["out.json"]))
    run_tracin.main([*command, "--method", "same-tail", "--top-k", "3", "--csv-output", str(tmp_path / "out.csv")])
    content = json.loads(files["out.json"].read_text(encoding="utf-8"))
    assert (content["method"], content["toy"]) == ("same-tail", True)
    if mode == "self":
        assert [row["self_influence"] for row in content["self_influences"]] == [1.0] * 3
        assert triples_of(content["self_influences"]) == [tuple(row) for row in TRAINING[:3]]
        return
    result = content["results"][0] if mode == "test" else content
    test_triple = result["test_triple"]
    order, _ = expected_positions((test_triple["head"], test_triple["relation"], test_triple["tail"]))
    assert triples_of(result["influences"]) == [tuple(TRAINING[position]) for position in order[:3]]

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import truth
from conve_examples import native_checkpoint, trained_conve
from truth_lib import exams, mechanism
from truth_lib.trained import BOTH_SIDES, LABELS_ALONE, METHODS, TRACIN_ROWS, GaussNewtonScores, gauss_newton

from conve_tracin.checkpoint.native import save_checkpoint
from conve_tracin.data.triples import write_triples
from conve_tracin.data.vocabulary import Vocabulary, write_vocabulary
from conve_tracin.errors import InputError

ENTITIES = [f"e{i}" for i in range(30)]
RELATIONS = ["r0", "r1", "r2", "r3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A graph, known reasons for some of its test triples, and two models that differ a little."""
    folder = tmp_path_factory.mktemp("graph")
    generator = np.random.default_rng(0)
    ids = np.unique(generator.integers(0, [30, 4, 30], size=(160, 3)), axis=0)
    labels = [(ENTITIES[h], RELATIONS[r], ENTITIES[t]) for h, r, t in generator.permutation(ids).tolist()]
    train, valid, test = labels[:140], labels[140:145], labels[145:]
    for split, part in (("train", train), ("valid", valid), ("test", test)):
        write_triples(folder / f"{split}.txt", part)
    write_vocabulary(folder / "entity_to_id.tsv", ENTITIES)
    write_vocabulary(folder / "relation_to_id.tsv", RELATIONS)
    lines = []
    for head, relation, tail in test:
        own = [t for t in train if head in (t[0], t[2])][:1] + [t for t in train if tail in (t[0], t[2])][:1]
        lines.append(json.dumps({"triple": [head, relation, tail], "reasons": own}) + "\n")
    (folder / "reasons.jsonl").write_text("".join(lines))
    digests = {
        "entity": Vocabulary("entity", tuple(ENTITIES)).digest(),
        "relation": Vocabulary("relation", tuple(RELATIONS)).digest(),
    }
    model, optimizer = trained_conve()
    training = {"inverse_triples": True, "training_approach": "kvsall", "batch_size": 16, "num_epochs": 1}
    for name in ("one", "two", "three", "four"):
        content = native_checkpoint(model, optimizer, training_config=training, mapping_digest=digests)
        save_checkpoint(folder / f"{name}.pt", content)
        with torch.no_grad():
            model.entity_embeddings.weight.add_(0.1 * torch.randn_like(model.entity_embeddings.weight))
    return folder


def run(folder, command, *more, methods=(LABELS_ALONE, TRACIN_ROWS, BOTH_SIDES), examine=truth.examine):
    arguments = [
        command, "--data", folder, "--reasons", folder / "reasons.jsonl",
        "--model-path", *(folder / f"{name}.pt" for name in ("one", "two", "three", "four")),
        "--max-rank", 30, "--cache", folder / "cache", "--results", folder / "exams.json",
        "--methods", *methods, *more,
    ]  # fmt: skip
    examine(truth.parse_args([str(each) for each in arguments]))
    return json.loads((folder / "exams.json").read_text())[command]


def test_reasons_have_every_method_and_rule_for_each_model_and_their_sum(folder):
    result = run(folder, "reasons", "--name", "small")["small"]
    assert result["models"] == 4
    of_method = result["results"][LABELS_ALONE]
    means = [each["reciprocal_rank"]["mean"] for each in of_method["by_model"]]
    assert of_method["mean"]["reciprocal_rank"]["mean"] == pytest.approx(np.mean(means))
    assert 0 < of_method["sum"]["reciprocal_rank"]["low"] <= of_method["sum"]["reciprocal_rank"]["high"] <= 1
    assert "rule: on a path of two hops" in result["results"]
    page = (folder / "exams.md").read_text()
    assert f"| {LABELS_ALONE}, 4 summed |" in page


def test_paths_compare_each_method_with_no_model(folder):
    ranked = run(folder, "paths", "--through", "e1")["graph0"]["results"]["ranked paths"]
    difference = ranked[BOTH_SIDES]["mean"]["first_reason"]["mean"] - ranked["no model"]["mean"]["first_reason"]["mean"]
    assert ranked[BOTH_SIDES]["above_no_model"]["first_reason"]["mean"] == pytest.approx(difference)


def test_stability_compares_models_and_sums_of_two(folder):
    results = run(folder, "stability", "--name", "small")["small"]["results"]
    assert results[LABELS_ALONE]["1"]["pairs"] == 6
    assert results[LABELS_ALONE]["2"]["pairs"] == 3
    assert f"{LABELS_ALONE}, in the order of ranked paths" in results
    assert f"{TRACIN_ROWS}, in the order of ranked paths" not in results


def test_scores_are_computed_once(folder, monkeypatch):
    run(folder, "reasons", "--name", "small")

    def refuse(*arguments):
        raise AssertionError("scored again")

    monkeypatch.setattr(GaussNewtonScores, "__call__", refuse)
    run(folder, "reasons", "--name", "small")
    # Other constants are another method, whatever it is called.
    monkeypatch.setitem(METHODS, LABELS_ALONE, gauss_newton(damping=7.0))
    with pytest.raises(AssertionError, match="scored again"):
        run(folder, "reasons", "--name", "small")


def test_disjoint_groups():
    assert list(exams.disjoint_groups(3, 1)) == [((0,), (1,)), ((0,), (2,)), ((1,), (2,))]
    assert len(list(exams.disjoint_groups(4, 2))) == 3


def test_unknown_methods_and_predictions_out_of_reach_are_named(folder):
    with pytest.raises(InputError, match="there is no 'magic'"):
        run(folder, "reasons", "--methods", "magic")
    with pytest.raises(InputError, match="none of its predictions is ranked within"):
        run(folder, "reasons", "--max-rank", "0.5")


def exam_of(folder):
    return exams.load_exam(
        data=folder, reasons=folder / "reasons.jsonl", model_paths=[folder / "one.pt"], max_rank=30,
        cache=folder / "cache",
    )  # fmt: skip


def test_other_triples_are_as_many_of_the_same_relation_and_no_reasons(folder):
    exam = exam_of(folder)
    reasons = np.flatnonzero(mechanism.removed_triples(exam, exam.scores(LABELS_ALONE)[0], mechanism.REASONS, seed=0))
    drawn = [
        np.flatnonzero(mechanism.removed_triples(exam, np.empty((0, 0)), mechanism.OTHERS, seed=seed))
        for seed in (0, 1)
    ]
    entities = {entity for each in exam.explained for entity in each.triple[[0, 2]].tolist()}
    for others in drawn:
        assert len(others) == len(reasons)
        assert not np.isin(others, reasons).any()
        assert all(entities & set(exam.train[position, [0, 2]].tolist()) for position in others)
    assert set(drawn[0]) != set(drawn[1])


def test_as_many_triples_are_removed_as_each_prediction_has_reasons(folder):
    exam = exam_of(folder)
    influences = exam.scores(LABELS_ALONE)[0]
    expected = set()
    for each, of_one in zip(exam.explained, influences, strict=True):
        expected |= set(sorted(range(len(of_one)), key=lambda i, scores=of_one: -scores[i])[: len(each.reasons)])
    marked = mechanism.removed_triples(exam, influences, mechanism.STRONGEST, seed=0)
    assert set(np.flatnonzero(marked)) == expected


def test_mechanism_trains_as_the_checkpoint_was_trained(folder):
    removals = ("--removals", mechanism.REASONS, mechanism.OTHERS, "--num-seeds", 2, "--name", "small")
    results = run(folder, "mechanism", *removals, examine=truth.mechanism)["small"]["results"]
    assert list(results) == [mechanism.NOTHING, mechanism.REASONS, mechanism.OTHERS]
    exam = exam_of(folder)
    setup = mechanism.setup_of(exam.models[0], folder, "cpu")
    data = setup.load()
    model = setup.train(data, data.train, 7000)
    heads, rows, tails = (torch.tensor(each) for each in exam.predictions[exam.kept].T)
    with torch.no_grad():
        scores = model.score(heads, 2 * rows, tails)
    assert results[mechanism.NOTHING]["score_by_seed"][0] == pytest.approx(float(scores.mean()), rel=1e-5)
    falls = np.subtract(results[mechanism.NOTHING]["score_by_seed"], results[mechanism.REASONS]["score_by_seed"])
    assert results[mechanism.REASONS]["fall_below_nothing"]["mean"] == pytest.approx(falls.mean(), rel=1e-4)
    assert f"| {mechanism.OTHERS} |" in (folder / "exams.md").read_text()


def test_unknown_removals_are_named(folder):
    with pytest.raises(InputError, match="there is no 'magic'"):
        run(folder, "mechanism", "--removals", "magic", examine=truth.mechanism)


def test_test_triples_with_whole_explanations_alone(folder):
    lines = (folder / "reasons.jsonl").read_text().splitlines()
    test = {tuple(line.split("\t")) for line in (folder / "test.txt").read_text().splitlines()}
    half, missing = json.loads(lines[0]), ["e0", "r0", "no entity"]
    half["explanations"] = [{"triples": [half.pop("reasons")[0], missing]}]
    training = (folder / "train.txt").read_text().splitlines()
    of_training = json.dumps({"triple": training[0].split("\t"), "reasons": [training[1].split("\t")]})
    (folder / "more.jsonl").write_text("\n".join([json.dumps(half), *lines[1:], of_training]))

    def predictions(**which):
        exam = exams.load_exam(
            data=folder, reasons=folder / "more.jsonl", model_paths=[folder / "one.pt"], max_rank=30,
            cache=folder / "cache", **which,
        )  # fmt: skip
        return {
            tuple(ENTITIES[each[i]] if i != 1 else RELATIONS[each[1]] for i in range(3)) for each in exam.predictions
        }

    assert predictions(test_alone=True) == test
    assert tuple(training[0].split("\t")) in predictions(whole_alone=True)
    assert tuple(half["triple"]) not in predictions(whole_alone=True)

import json
import shutil
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import truth
from truth_lib import lds, planted, removal, retraining, tables
from truth_lib.methods import BASELINES, RECOMMENDED
from truth_lib.setups import Setup, rank_tails

from conve_tracin.data.triples import write_triples
from conve_tracin.data.vocabulary import write_vocabulary
from conve_tracin.errors import InputError
from conve_tracin.settings import TrainingConfig
from conve_tracin.training.run import TrainingData


@pytest.fixture
def setup(tmp_path):
    """A folder with a small data set, and a training of one epoch."""
    generator = np.random.default_rng(0)
    names = [(f"e{h}", f"r{r}", f"e{t}") for h, r, t in product(range(6), range(2), range(6))]
    names = [names[i] for i in generator.permutation(len(names))]
    folder = tmp_path / "small"
    for split, part in (("train", names[:40]), ("valid", names[40:46]), ("test", names[46:52])):
        write_triples(folder / f"{split}.txt", part)
    write_vocabulary(folder / "entity_to_id.tsv", [f"e{i}" for i in range(6)])
    write_vocabulary(folder / "relation_to_id.tsv", ["r0", "r1"])
    config = TrainingConfig(num_epochs=1, batch_size=16, training_approach="kvsall", inverse_triples=True)
    return Setup(data_dir=folder, config=config, embedding_height=2, embedding_width=4)


def test_average_ranks_share_ties():
    assert lds.average_ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]


def test_rank_correlation_is_pearson_of_ranks_and_ignores_monotone_maps():
    generator = np.random.default_rng(0)
    left, right = generator.normal(size=(2, 50, 3))
    ranks = [values.argsort(axis=0).argsort(axis=0) for values in (left, right)]
    expected = [np.corrcoef(ranks[0][:, i], ranks[1][:, i])[0, 1] for i in range(3)]
    np.testing.assert_allclose(lds.rank_correlations(np.exp(left), right**3), expected)
    assert lds.rank_correlations(np.zeros((50, 3)), right).tolist() == [0, 0, 0]


def test_true_additive_influence_reaches_the_noise_ceiling():
    generator = np.random.default_rng(0)
    influence = generator.normal(size=(40, 300))
    halves = retraining.random_parts(300, 200)
    truth = halves @ influence.T  # (M, n)
    measured = truth + generator.normal(size=(3, *truth.shape)) * truth.std(axis=0)
    scores = lds.rank_correlations(lds.sums_of_parts(influence, halves), measured.mean(axis=0))
    assert scores.mean() == pytest.approx(lds.noise_ceiling(measured), abs=0.02)
    assert scores.mean() == pytest.approx(np.sqrt(3 / 4), abs=0.03)  # signal 1, noise 1/3


def test_the_command_measures_both_sides_of_what_was_retrained(setup, tmp_path):
    results = tmp_path / "truth.json"
    arguments = [
        "lds", "--data", setup.data_dir, "--inverse-triples", "--num-epochs", 1, "--batch-size", 16,
        "--embedding-height", 2, "--embedding-width", 4, "--num-halves", 4, "--num-seeds", 2, "--num-models", 1,
        "--num-test", 4, "--methods", "TracIn, last layers", "--cache", tmp_path / "cache", "--results", results,
    ]  # fmt: skip
    truth.lds(truth.parse_args([str(argument) for argument in arguments]))
    (found,) = json.loads(results.read_text())["lds"].values()
    chosen = np.sort(np.random.default_rng(7).permutation(6)[:4])
    test, train = setup.load().test[chosen], setup.load().train
    same_tail = (test[:, None, 2] == train[None, :, 2]).astype(float)  # (n, N)
    folder = tmp_path / "cache/small-kvsall-inverse"
    stored = [
        [np.load(folder / f"half_{part:03d}_seed_{seed}.npz")["scores"] for part in range(4)] for seed in range(2)
    ]
    measured = np.mean(stored, axis=0)[:, chosen]  # (M, n, 2)
    kept = retraining.random_parts(len(train), 4)
    for place, scores in ((found, measured[..., 0]), (found["both_sides"], measured.sum(axis=2))):
        expected = [spearmanr(kept @ same_tail[i], scores[:, i]).statistic for i in range(4)]
        assert place["methods"]["same tail"]["mean"] == pytest.approx(np.mean(expected))
        rules = {name: place["methods"][name]["mean"] for name in BASELINES}
        assert rules[place["best_baseline"]] == max(rules.values())
        above = place["methods"][RECOMMENDED]["mean"] - max(rules.values())
        assert place["recommended_above_best_baseline"]["mean"] == pytest.approx(above)
    page = results.with_suffix(".md").read_text()
    assert "plus that of its inverse" in page


def test_halves_keep_half_and_do_not_depend_on_their_number():
    halves = retraining.random_parts(101, 7)
    assert (halves.sum(axis=1) == 50).all()
    assert (halves[:3] == retraining.random_parts(101, 3)).all()
    assert (retraining.random_parts(101, 3, share=0.9).sum(axis=1) == 90).all()


@pytest.mark.parametrize("seed", range(5))
def test_others_alike_share_an_entity_and_have_a_degree_as_near_as_is_left(seed):
    generator = np.random.default_rng(seed)
    # Entities of low numbers are hubs.
    train = np.unique((generator.random((400, 3)) ** 2 * (40, 3, 40)).astype(int), axis=0)
    test = np.array([(0, 0, 30)])
    influence = np.zeros((1, len(train)))
    near = np.isin(train[:, [0, 2]], [0]).any(axis=1)
    top = generator.permutation(np.flatnonzero(near))[:3]
    influence[0, top] = (3.0, 2.0, 1.0)
    drawn = np.flatnonzero(removal.alike_triples(influence, test, train, 3, seed=seed))
    assert len(drawn) == 3
    assert not set(drawn) & set(top)
    assert near[drawn].all()
    degrees = np.bincount(train[:, [0, 2]].ravel())

    def other_degrees(places):
        return sorted(degrees[tail if head == 0 else head] for head, _, tail in train[places])

    free = np.setdiff1d(np.flatnonzero(near), top)
    for wanted, found in zip(other_degrees(top), other_degrees(drawn), strict=True):
        distances = sorted(abs(np.log(degree) - np.log(wanted)) for degree in other_degrees(free))
        # Three draws, each among the five nearest that were left; sorting pairs them up no worse.
        assert abs(np.log(found) - np.log(wanted)) <= distances[min(len(distances) - 1, 3 + removal.NEAREST)] + 1e-9


def test_a_removal_of_facts_that_none_ranks_first_has_its_row():
    nothing = {"test_triples": 0, "mrr": None, "hits@1": None}
    first = {"test_triples": 2, "mrr": 0.75, "hits@1": 0.5}
    value = {"triples_removed": 3, "mrr": 0.2, "mrr_standard_error": 0.0, "hits@1": 0.0, "score": -1.0}
    assert tables._first_before(value | {"first_before": nothing}) == "–"
    assert tables._first_before(value | {"first_before": first}) == ".750, .500"
    assert tables._first_before(value) == "–"


def test_the_curve_of_removals_is_of_what_was_retrained(setup, tmp_path, monkeypatch):
    facts = tmp_path / "facts.tsv"
    shutil.copy(setup.data_dir / "test.txt", facts)
    results = tmp_path / "truth.json"
    arguments = [
        "remove", "--data", setup.data_dir, "--inverse-triples", "--num-epochs", 1, "--batch-size", 16,
        "--embedding-height", 2, "--embedding-width", 4, "--num-models", 1, "--num-seeds", 2, "--facts", facts,
        "--top-k", 1, 3, "--removals", removal.NOTHING, removal.ALIKE, removal.RECOMMENDED,
        "--cache", tmp_path / "cache", "--results", results,
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["truth.py", *map(str, arguments)])
    truth.main()
    result = json.loads(results.read_text())["remove"]["small-kvsall-inverse, facts"]
    assert result["test_triples"] == 6
    assert list(result["by_top_k"]) == ["1", "3"]
    one, three = result["by_top_k"].values()
    assert one[removal.NOTHING] == three[removal.NOTHING]
    assert 1 <= one[removal.RECOMMENDED]["triples_removed"] <= 6
    assert one[removal.RECOMMENDED]["triples_removed"] < three[removal.RECOMMENDED]["triples_removed"] <= 18
    assert one[removal.ALIKE]["triples_removed"] == one[removal.RECOMMENDED]["triples_removed"]
    for than, member in ((removal.NOTHING, "fall_below_nothing"), (removal.ALIKE, "fall_below_others")):
        fall = three[removal.RECOMMENDED][member]
        assert fall["mean"] == pytest.approx(three[than]["score"] - three[removal.RECOMMENDED]["score"], abs=1e-6)
        assert fall["low"] <= fall["mean"] <= fall["high"]

    setup = truth.setup_of(truth.parse_args(list(map(str, arguments))))
    data = setup.load()
    model = setup.train(data, data.train, 0)
    influence = removal.influences_of([removal.RECOMMENDED], [model], setup, data.test, data.train)
    kept = ~removal.strongest_proponents(influence[removal.RECOMMENDED], 3)
    expected = [rank_tails(setup.train(data, data.train[kept], 5000 + seed), setup, data) for seed in range(2)]
    assert three[removal.RECOMMENDED]["mrr"] == pytest.approx((1 / np.array(expected)).mean())
    monkeypatch.setattr(sys, "argv", [*sys.argv[: sys.argv.index("--top-k") + 1], "2", *sys.argv[-8:]])
    truth.main()
    merged = json.loads(results.read_text())["remove"]["small-kvsall-inverse, facts"]["by_top_k"]
    assert {top_k: merged[top_k] for top_k in ("1", "3")} == result["by_top_k"]
    assert merged["2"][removal.RECOMMENDED]["triples_removed"] > one[removal.RECOMMENDED]["triples_removed"]
    facts.write_text("e0\tr0\te0\n")
    monkeypatch.setattr(sys, "argv", ["truth.py", *map(str, arguments)])
    with pytest.raises(InputError, match=r"facts.tsv: 1 of 1 facts are no test triples"):
        truth.main()


def test_area_under_roc_counts_pairs():
    generator = np.random.default_rng(0)
    suspicion = generator.integers(0, 5, 60).astype(float)
    errors = generator.random(60) < 0.3
    pairs = [(a > b) + 0.5 * (a == b) for a in suspicion[errors] for b in suspicion[~errors]]
    assert planted.area_under_roc(suspicion, errors) == pytest.approx(np.mean(pairs))


def test_planted_errors_are_false_and_change_tails_alone():
    every = np.array(list(product(range(5), range(2), range(5))))
    every = np.random.default_rng(0).permutation(every)
    data = TrainingData(every[:30], every[30:34], every[34:38], 5, 2, {})
    triples, errors = planted.plant_errors(data, 0.2, seed=0)
    assert 0 < errors.sum() <= 6
    assert (triples[~errors] == data.train[~errors]).all()
    assert (triples[:, :2] == data.train[:, :2]).all()
    known = {tuple(triple) for triple in every[:38].tolist()}
    false = [tuple(triple) for triple in triples[errors].tolist()]
    assert not known & set(false)
    assert len(set(false)) == len(false)


def test_strongest_proponents_are_those_of_highest_score_whatever_their_size():
    influence = np.array([[0.1, -9.0, 3.0, 2.0], [5.0, 0.0, 0.0, -1.0]])
    assert removal.strongest_proponents(influence, 1).tolist() == [True, False, True, False]
    ties = removal.strongest_proponents(np.ones((1, 50)), 10)
    assert ties.sum() == 10
    assert not ties[:10].all()  # ties are drawn by lot, not by position
    # What has no influence, or speaks against the test triple, is no proponent.
    assert removal.strongest_proponents(influence, 3).tolist() == [True, False, True, True]


def test_random_triples_share_an_entity_where_they_should():
    train = np.array([[0, 0, 1], [1, 0, 2], [3, 0, 4], [4, 0, 3], [2, 0, 0]])
    marked = removal.random_triples(np.array([[0, 0, 9]]), train, 5, share_entity=True)
    assert marked.tolist() == [True, False, False, False, True]
    assert removal.random_triples(np.array([[0, 0, 9]]), train, 3, share_entity=False).sum() == 3


def test_a_finished_retraining_is_not_run_again_and_is_what_its_seed_says(setup, tmp_path):
    jobs = retraining.lds_jobs(setup, tmp_path / "cache", num_halves=2, num_seeds=1)[0]
    retraining.run_job(jobs[0])
    assert jobs[0].is_done()
    assert not jobs[1].is_done()
    stored = retraining.read_scores([jobs[0]])
    again = setup.train(setup.load(), setup.load().train[jobs[0].kept], jobs[0].seed)
    test = torch.from_numpy(setup.model_triples(setup.load().test)[:6])
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(stored[0]), again.score(*test.T))
    assert retraining._run_unless_done(jobs[0]) == 0.0


def test_a_cache_of_other_settings_is_refused(setup, tmp_path):
    retraining.require_same_setup(setup, tmp_path)
    retraining.require_same_setup(setup, tmp_path)
    other = Setup(data_dir=setup.data_dir, config=setup.config, embedding_height=4, embedding_width=4)
    with pytest.raises(InputError, match="embedding_dim 8, not 16"):
        retraining.require_same_setup(other, tmp_path)

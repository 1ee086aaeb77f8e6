"""Ranks of single test triples, and the choice of the best."""

import json
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from command_lines import run
from conftest import make_small_conve
from project_files import COMMANDS, MAPPINGS, clean, project  # noqa: F401 - fixtures
from project_files import NAMES as NAME_FLAGS

import rank_pytorch
from conve_tracin.checkpoint.native import save_checkpoint
from conve_tracin.data.names import Names
from conve_tracin.data.resolve import read_test_triples
from conve_tracin.data.vocabulary import Vocabulary
from conve_tracin.errors import InputError
from conve_tracin.ranking import table as ranks_table
from conve_tracin.ranking.table import RankedTriples, choose_best, rank_triples_of

RANK = (
    "rank_pytorch", "--model-path", "model.pt", "--train", "train.tsv", "--valid", "valid.tsv", "--test", "test.tsv",
    *MAPPINGS, *NAME_FLAGS, "--device", "cpu",
)  # fmt: skip


def run_next(finished, script, *more):
    """Run the command that a script has printed as the next."""
    assert finished.code == 0, finished
    (command,) = [line for line in finished.out.splitlines() if line.startswith("Next: ")]
    words = shlex.split(command.removeprefix("Next: "))
    assert words[:2] == ["python", script]
    done = run(script.removesuffix(".py"), *words[2:], *more)
    assert done.code == 0, done
    return done


def rank_by_hand(model, head, relation, tail, known_tails):
    """The mean rank of `tail` among the entities that are not known, one score at a time."""

    def score(entity):
        return model.score(*(torch.tensor([value]) for value in (head, relation, entity))).item()

    own = score(tail)
    others = [score(entity) for entity in range(model.config.num_entities) if entity not in known_tails - {tail}]
    return 1 + sum(other > own for other in others) + (sum(other == own for other in others) - 1) / 2


@pytest.mark.parametrize("inverse_triples", [False, True])
def test_ranks_and_scores_one_by_one(graph, inverse_triples):
    model = make_small_conve(num_relations=6 if inverse_triples else 3)
    splits = (graph.train, graph.valid, graph.test)
    ranked = rank_triples_of(model, splits, inverse_triples=inverse_triples, batch_size=2)
    everything = np.concatenate(splits).tolist()
    for row, (head, relation, tail) in enumerate(graph.test.tolist()):
        forward = 2 * relation if inverse_triples else relation
        tails = {t for h, r, t in everything if (h, r) == (head, relation)}
        with torch.no_grad():
            assert ranked.tail_ranks[row] == rank_by_hand(model, head, forward, tail, tails)
            score = model(torch.tensor([head]), torch.tensor([forward]))[0, tail].item()
            assert ranked.scores[row] == pytest.approx(score, rel=1e-12)
            if inverse_triples:
                heads = {h for h, r, t in everything if (r, t) == (relation, tail)}
                assert ranked.head_ranks[row] == rank_by_hand(model, tail, forward + 1, head, heads)
    assert (ranked.head_ranks is None) == (not inverse_triples)


def test_best_are_by_rank_then_score_and_distinct():
    triples = np.array([(0, 0, 1), (0, 0, 2), (0, 0, 3), (0, 0, 2), (0, 0, 4)])
    ranked = RankedTriples(triples, np.array([9.0, 1.0, 2.0, 1.0, 2.0]), np.array([3.0, 1.0, 1.0, 1.0, 1.0]), None)
    assert choose_best(ranked, 4).tolist() == [[0, 0, 3], [0, 0, 4], [0, 0, 2], [0, 0, 1]]
    assert choose_best(ranked, 1).tolist() == [[0, 0, 3]]
    with pytest.raises(InputError, match="4 distinct test triples, fewer than the 5"):
        choose_best(ranked, 5)


def test_large_ranks_keep_their_digits(graph, tmp_path):
    ranks = np.array([123456.5, 1234567.0, 2.5])
    ranked = RankedTriples(graph.test, np.array([3.0, 2.0, 1.0]), ranks, ranks[::-1])
    names = Names(Vocabulary("entity", graph.entities), Vocabulary("relation", graph.relations))
    ranks_table.write_ranks(tmp_path / "ranks.tsv", ranked, names)
    table = pd.read_csv(tmp_path / "ranks.tsv", sep="\t")
    assert sorted(table["tail_rank"]) == sorted(table["head_rank"]) == sorted(ranks)


def test_command_line(graph, graph_files, tmp_path, capsys):
    model = make_small_conve().float()
    checkpoint = tmp_path / "model.pt"
    save_checkpoint(
        checkpoint,
        {"epoch": 1, "model_state_dict": model.state_dict(), "optimizer_state_dict": {},
         "model_config": model.config.as_dict()},
    )  # fmt: skip
    rank_pytorch.main(
        ["--model-path", str(checkpoint), *graph_files.arguments(), "--output", str(tmp_path / "ranks.tsv"),
         "--best", "2", "--best-output", str(tmp_path / "best.tsv"), "--device", "cpu"]
    )  # fmt: skip
    lines = [line.split("\t") for line in (tmp_path / "ranks.tsv").read_text(encoding="utf-8").splitlines()]
    assert tuple(lines[0]) == ranks_table.COLUMNS
    ranked = rank_triples_of(model, (graph.train, graph.valid, graph.test), inverse_triples=False, batch_size=256)
    by_rank = sorted(range(3), key=lambda row: (ranked.tail_ranks[row], -ranked.scores[row]))
    assert [line[3:6] for line in lines[1:]] == [
        [graph.entities[h], graph.relations[r], graph.entities[t]] for h, r, t in graph.test[by_rank].tolist()
    ]
    assert [float(line[0]) for line in lines[1:]] == ranked.tail_ranks[by_rank].tolist()
    best = read_test_triples(
        tmp_path / "best.tsv", Vocabulary("entity", graph.entities), Vocabulary("relation", graph.relations)
    )
    assert best.tolist() == graph.test[by_rank[:2]].tolist()
    assert "MRR of the tails" in capsys.readouterr().out


def test_metrics_of_each_side_and_relation():
    triples = np.array([(0, 0, 1), (0, 1, 2), (1, 1, 3)])
    ranked = RankedTriples(triples, np.zeros(3), np.array([1.0, 2.0, 4.0]), np.array([1.0, 1.0, 10.0]))
    metrics = ranks_table.metrics_of(ranked)
    assert metrics["tails"]["mean_reciprocal_rank"] == pytest.approx((1 + 1 / 2 + 1 / 4) / 3)
    assert metrics["heads"]["mean_reciprocal_rank"] == pytest.approx((1 + 1 + 1 / 10) / 3)
    assert metrics["both"]["hits@1"] == pytest.approx(3 / 6)
    names = Names(Vocabulary("entity", "abcd"), Vocabulary("relation", ("r", "s")), predicates={"s": "treats"})
    found = ranks_table.metrics_by_relation(ranked, names)
    assert [(row["relation"], row["relation_name"], row["triples"]) for row in found] == [
        ("s", "treats", 2),
        ("r", "r", 1),
    ]
    assert found[0]["both"]["mean_rank"] == pytest.approx((2 + 4 + 1 + 10) / 4)
    assert found[1]["tails"]["hits@1"] == 1
    tails_only = RankedTriples(triples, np.zeros(3), np.array([1.0, 2.0, 4.0]), None)
    assert ranks_table.metrics_of(tails_only).keys() == {"tails"}
    printed = ranks_table.metrics_as_text(ranked, found).splitlines()
    assert [line.split()[-1] for line in printed[2:5]] == ["tails", "heads", "both"]
    assert printed[-1].split()[0] == f"{1:.4f}"


def test_next_command_explains_the_best_of_the_table(project):
    """Training's next command ranks, that of ranking explains: each as it is printed."""
    trained = run(*COMMANDS["train"])
    ranked = run_next(trained, "rank_pytorch.py", "--best", "2", "--by-relation")
    table = pd.read_csv("out/ranks.tsv", sep="\t")
    explained = run_next(ranked, "run_tracin.py", "--device", "cpu")
    results = json.loads(Path("out/ranks_explained.json").read_text(encoding="utf-8"))["results"]
    asked = [[result["test_triple"][f"{part}_key"] for part in ("head", "relation", "tail")] for result in results]
    assert asked == table[["head", "relation", "tail"]][:2].to_numpy().tolist()
    assert [result["prediction"]["rank"] for result in results] == table["tail_rank"][:2].tolist()
    assert "out/ranks_explained.html" in explained.out


def test_ranks_as_json(project):
    finished = run(*RANK, "--output", "ranks.json", "--by-relation")
    assert finished.code == 0, finished
    assert "Next:" not in finished.out
    run(*RANK, "--output", "ranks.tsv")
    written = json.loads(Path("ranks.json").read_text(encoding="utf-8"))
    table = pd.read_csv("ranks.tsv", sep="\t")
    assert [row["tail_rank"] for row in written["ranks"]] == table["tail_rank"].tolist()
    assert [row["head_name"] for row in written["ranks"]] == table["head_name"].tolist()
    expected = (1 / table["tail_rank"]).mean()
    assert written["metrics"]["tails"]["mean_reciprocal_rank"] == pytest.approx(expected)
    assert sum(row["triples"] for row in written["by_relation"]) == len(table)


@pytest.mark.parametrize("flag", ["--output", "--best-output"])
def test_inputs_are_not_replaced(graph_files, tmp_path, flag):
    before = graph_files.test.read_bytes()
    given = ["--model-path", str(tmp_path / "model.pt"), *graph_files.arguments(), "--output", str(tmp_path / "out")]
    with pytest.raises(InputError, match=f"is an input, which {flag} would replace"):
        rank_pytorch.main([*given, flag, str(graph_files.test)])
    assert graph_files.test.read_bytes() == before

"""Standing, warnings and the model's metrics in the JSON, on the page and in the terminal of both scripts."""

import json

import pytest
import torch
from conftest import ENTITIES, TRAIN, VALID, make_small_conve, triple_lines
from page_content import Page
from pykeen_examples import trained_model

import run_tracin
import tracin_pytorch

CATEGORIES = ("Drug", "Drug", "Disease", "Disease", "Disease", "Gene")
CONFIG = {"training_approach": "kvsall", "num_epochs": 40, "random_seed": 1}
METRICS = {"mean_reciprocal_rank": 0.5, "hits@1": 0.25, "hits@10": 0.75, "ranked": "heads and tails"}


@pytest.fixture
def command(graph_files, tmp_path):
    model = make_small_conve(num_relations=6).float()
    content = {
        "model_state_dict": model.state_dict(), "model_config": model.config.as_dict(), "epoch": 3, "metrics": METRICS,
        "training_config": CONFIG | {"inverse_triples": True}, "training_triples_digest": "of another file",
    }  # fmt: skip
    torch.save(content, tmp_path / "model.pt")
    nodes = (
        json.dumps({"id": entity, "category": ["biolink:NamedThing", f"biolink:{kind}"]})
        for entity, kind in zip(ENTITIES, CATEGORIES, strict=True)
    )
    (tmp_path / "nodes.jsonl").write_text("\n".join(nodes), "utf-8")
    return [
        "--model-path", str(tmp_path / "model.pt"), "--train", str(graph_files.train),
        "--entity-to-id", str(graph_files.entity_to_id), "--relation-to-id", str(graph_files.relation_to_id),
        "--nodes", str(tmp_path / "nodes.jsonl"), "--report", str(tmp_path / "report.html"),
    ]  # fmt: skip


def explain(command, tmp_path, *more):
    arguments = ["--test-triple", "ibuprofen", "treats", "MONDO:0005148", "--output", str(tmp_path / "out.json")]
    tracin_pytorch.main([*command, *arguments, *more])
    page = Page((tmp_path / "report.html").read_text("utf-8"))
    return json.loads((tmp_path / "out.json").read_text("utf-8")), page


@pytest.mark.parametrize(
    ("question", "kinds"),
    [
        (("ibuprofen", "treats", "MONDO:0005148"), ()),
        (("MONDO:0005148", "treats", "ibuprofen"), ("head of the category Disease", "tail of the category Drug")),
        (("ibuprofen", "treats", ENTITIES[5]), ("tail of the category Gene",)),
    ],
)
def test_an_end_of_a_kind_that_the_relation_never_has_there_is_remarked_on(command, tmp_path, capsys, question, kinds):
    content, _ = explain(command, tmp_path, "--test-triple", *question)
    prediction = content["prediction"]
    if not kinds:
        assert "remark" not in prediction
        assert "of the category" not in capsys.readouterr().out
        return
    sentence = f"No training triple of this relation has a {', and none a '.join(kinds)}: "
    assert prediction["remark"].startswith(sentence)
    assert prediction["warnings"][0] == prediction["remark"]
    assert "untrained" not in prediction
    assert prediction["remark"] in capsys.readouterr().out
    assert sentence in (tmp_path / "report.html").read_text("utf-8")


def test_the_json_says_how_both_ends_stand(command, tmp_path, capsys):
    prediction = explain(command, tmp_path)[0]["prediction"]
    tail, head = prediction["tail_standing"], prediction["head_standing"]
    assert (tail["category"], tail["possible_in_category"]) == ("Disease", 1)
    assert (head["category"], head["possible_in_category"]) == ("Drug", 1)
    assert (tail["rank_in_category"], head["rank_in_category"]) == (1, 1)
    # 0 and 1 are all heads of the relation; the head asked for is left out, and the other one has this tail.
    assert tail["other_questions"] == {"num_questions": 2, "num_asked": 0, "num_among_first": 0, "share": None}
    assert [answer["score"] for answer in tail["best_answers"]] == sorted(
        (answer["score"] for answer in tail["best_answers"]), reverse=True
    )
    assert {answer["key"] for answer in tail["best_answers"] if answer["known"]} == {ENTITIES[2], ENTITIES[3]}
    assert {answer["id"] for answer in tail["best_answers"]} == set(range(6))
    assert "Rank 1 of 1 diseases" in capsys.readouterr().out


def test_shares_are_those_of_all_absolute_influence(command, tmp_path):
    content, _ = explain(command, tmp_path, "--top-k", "99")
    influences = content["influences"]
    total = sum(abs(one["influence"]) for one in influences)
    assert len(influences) == len(TRAIN)
    assert [one["share"] for one in influences] == pytest.approx([abs(one["influence"]) / total for one in influences])
    assert sum(one["share"] for one in influences) == pytest.approx(1)


def test_what_the_terminal_warns_of_stands_in_json_and_page(command, tmp_path, caplog, graph_files):
    with graph_files.train.open("a", encoding="utf-8") as file:
        file.write("ibuprofen\ttreats\tnobody knows\n")
    content, page = explain(command, tmp_path, "--skip-unknown")
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == 2
    warnings = content["prediction"]["warnings"]
    assert warnings[:2] == warned
    assert any("was trained on other triples" in warning for warning in warnings)
    assert any("epoch 3 of 40" in warning for warning in warnings)
    assert any("one model's view" in warning for warning in warnings)
    assert page.texts("ul", "warnings") == ["".join(warnings)]


def test_the_models_metrics_stand_in_json_and_page(command, tmp_path):
    content, page = explain(command, tmp_path)
    assert content["model_metrics"] == {
        "split": "validation", "ranked": "heads and tails", "epoch": 3, "mean_reciprocal_rank": 0.5, "hits@1": 0.25,
        "hits@10": 0.75,
    }  # fmt: skip
    assert "On validation triples (heads and tails, filtered), after epoch 3" in " ".join(
        page.texts("section", "trust")[0].split()
    )


def test_an_unseen_entity_is_warned_of_in_its_prediction_alone(command, tmp_path, graph_files, graph):
    graph_files.train.write_text("".join(triple_lines(graph, TRAIN[:2])), "utf-8")
    wanted = tmp_path / "wanted.txt"
    wanted.write_text("".join(triple_lines(graph, [*TRAIN[:1], *VALID[:1]])), "utf-8")
    tracin_pytorch.main([*command, "--test-triples", str(wanted), "--output-dir", str(tmp_path / "many")])
    results = [json.loads(path.read_text("utf-8"))["prediction"] for path in sorted((tmp_path / "many").glob("*.json"))]
    for result in results:
        assert ("remark" in result) == result["warnings"][0].startswith("No training triple has")
    assert {"remark" in result for result in results} == {True, False}


@pytest.mark.parametrize("name", ["TransE", "ConvE"])
def test_models_of_pykeen_say_the_same(name, tmp_path, graph_files):
    model = trained_model(name, inverse_triples=False)
    names = [f"e{n}" for n in range(model.num_entities)], [f"r{n}" for n in range(model.num_relations)]
    for file, labels in zip(("entities.tsv", "relations.tsv"), names, strict=True):
        (tmp_path / file).write_text("".join(f"{label}\t{n}\n" for n, label in enumerate(labels)))
    lines = [f"e{n}\tr0\te{(3 * n + 1) % model.num_entities}\n" for n in range(model.num_entities)]
    (tmp_path / "train.txt").write_text("".join(lines))
    torch.save(model, tmp_path / "trained_model.pkl")
    run_tracin.main([
        "--model-path", str(tmp_path / "trained_model.pkl"), "--trust-pickle", "--train", str(tmp_path / "train.txt"),
        "--test-triples", str(tmp_path / "train.txt"), "--max-test-triples", "1", "--output", str(tmp_path / "o.json"),
        "--entity-to-id", str(tmp_path / "entities.tsv"), "--relation-to-id", str(tmp_path / "relations.tsv"),
        "--use-optimized-tracin", "--report", str(tmp_path / "report.html"),
    ])  # fmt: skip
    (result,) = json.loads((tmp_path / "o.json").read_text("utf-8"))["results"]
    standing = result["prediction"]["tail_standing"]
    assert standing["other_questions"]["num_questions"] == model.num_entities
    scores = model.predict_t(torch.tensor([[0, 0]]))[0].detach()
    best = scores.sort(descending=True, stable=True).indices[:10].tolist()
    assert [answer["id"] for answer in standing["best_answers"]] == best
    assert "category" not in standing
    assert "does not tell how it was trained" in (tmp_path / "report.html").read_text("utf-8")

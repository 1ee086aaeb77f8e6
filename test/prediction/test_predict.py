"""Candidates through the command line, against PyKEEN's predictions and against a loop over all entities."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from command_lines import assert_refused, run
from conftest import ENTITIES, RELATIONS, TRAIN, VALID, make_small_conve, mapping_lines
from influence_examples import gradients_by_hand
from pykeen.predict import predict_target
from pykeen_examples import trained_model, training_factory

from conve_tracin.checkpoint.conversion import to_pykeen_checkpoint
from conve_tracin.checkpoint.native import save_checkpoint
from conve_tracin.prediction.write import COLUMNS

MAPPINGS = ("--entity-to-id", "entity_to_id.tsv", "--relation-to-id", "relation_to_id.tsv")
ASKED = ("--model-path", "model.pt", *MAPPINGS, "--device", "cpu")
KNOWN = ("--known", "train.tsv", "valid.tsv")
KNOWN_TRIPLES = {tuple(triple) for triple in np.concatenate([TRAIN, VALID]).tolist()}


@pytest.fixture(params=[False, True], ids=["tails", "both sides"])
def inverse_triples(request):
    return request.param


@pytest.fixture
def model(inverse_triples):
    return make_small_conve(num_relations=6 if inverse_triples else 3).float()


@pytest.fixture
def project(graph_files, model, inverse_triples, monkeypatch):
    """A directory with a model and its graph, in which the scripts run."""
    monkeypatch.chdir(graph_files.directory)
    save_native("model.pt", model, inverse_triples=inverse_triples)
    Path("names.txt").write_text("Aspirin (drug)\t0\nHeadache\t2\n")
    return graph_files.directory


def save_native(path, model, *, inverse_triples):
    content = {"epoch": 1, "model_state_dict": model.state_dict(), "optimizer_state_dict": {}}
    training = {"inverse_triples": inverse_triples, "training_approach": "kvsall"}
    save_checkpoint(Path(path), content | {"model_config": model.config.as_dict(), "training_config": training})


def ask(*arguments, output="out/answers.tsv"):
    """Run the script and return the table that it writes."""
    done = run("predict_pytorch", *ASKED, *arguments, "--output", output)
    assert (done.code, done.trouble) == (0, None), done
    return pd.read_csv(output, sep="\t") if output.endswith(".tsv") else json.loads(Path(output).read_text("utf-8"))


def by_hand(model, query, *, known, candidates=range(6), keep_known=False):
    """[(entity, rank, score, is_known)] of one query in the model's rows, best first, one score at a time."""
    entity, row = query

    def score(other):
        return model.score(*(torch.tensor([value]) for value in (entity, row, other))).item()

    scores = {other: score(other) for other in candidates}
    unknown = [other for other in candidates if other not in known]

    def rank(one):
        others = [scores[other] for other in unknown if other != one]
        return 1 + sum(s > scores[one] for s in others) + sum(s == scores[one] for s in others) / 2

    listed = candidates if keep_known else unknown
    found = [(other, rank(other), scores[other], other in known) for other in listed]
    return sorted(found, key=lambda answer: (-answer[2], answer[0]))


# ---------------------------------------------------------------------------------------------------------------
# Against PyKEEN


@pytest.mark.parametrize("name", ["ConvE", "DistMult", "TransE"])
@pytest.mark.parametrize("with_inverses", [False, True])
def test_filtered_ranks_are_those_of_pykeens_predict_target(name, with_inverses, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, factory = trained_model(name, inverse_triples=with_inverses), training_factory()
    torch.save(model, "trained_model.pkl")
    for kind in ("entity", "relation"):
        index = getattr(factory, f"{kind}_to_id")
        Path(f"{kind}_to_id.tsv").write_text("".join(mapping_lines(sorted(index, key=index.get))))
    known, labels = factory.mapped_triples, ("\t".join(triple) + "\n" for triple in factory.triples)
    Path("train.tsv").write_text("".join(labels))
    some = known[[0, 500, 1500]].tolist()
    asked = [(head, relation, None) for head, relation, _ in some]
    asked += [(None, relation, tail) for _, relation, tail in some if with_inverses]
    entities, relations = factory.entity_id_to_label, factory.relation_id_to_label
    lines = [
        "\t".join(
            "?" if value is None else of[value]
            for value, of in zip(query, (entities, relations, entities), strict=True)
        )
        for query in asked
    ]
    Path("queries.tsv").write_text("\n".join(lines) + "\n")
    done = run(
        "predict_pytorch", "--model-path", "trained_model.pkl", "--trust-pickle", *MAPPINGS, "--device", "cpu",
        "--queries", "queries.tsv", "--known", "train.tsv", "--top-k", "99", "-o", "out.json",
    )  # fmt: skip
    assert (done.code, done.trouble) == (0, None), done
    results = json.loads(Path("out.json").read_text())["queries"]
    for (head, relation, tail), result in zip(asked, results, strict=True):
        target = "tail" if tail is None else "head"
        theirs = predict_target(model, head=head, relation=relation, tail=tail, triples_factory=factory)
        expected = theirs.filter_triples(factory).df
        answers = pd.DataFrame(result["predictions"])
        assert len(answers) == model.num_entities - result["num_known"] < model.num_entities
        assert answers[f"{target}_id"].tolist() == expected[f"{target}_id"].tolist()
        np.testing.assert_allclose(answers["score"], expected["score"], rtol=1e-5, atol=1e-5)
        assert answers["rank"].tolist() == expected["score"].rank(ascending=False, method="average").tolist()
        is_known = (known[:, 1] == relation) & (known[:, 0] == head if tail is None else known[:, 2] == tail)
        assert result["num_known"] == len(known[is_known].unique(dim=0))


# ---------------------------------------------------------------------------------------------------------------
# Against a loop


@pytest.mark.parametrize("keep_known", [False, True])
@pytest.mark.parametrize("candidates", [range(6), (2, 3, 5)])
@pytest.mark.parametrize("top_k", [2, 50])
def test_answers_are_those_of_a_loop(project, model, inverse_triples, keep_known, candidates, top_k):
    Path("candidates.txt").write_text("".join(f"{ENTITIES[entity]}\n" for entity in candidates), encoding="utf-8")
    queries = [(0, 0, None), (5, 2, None), (1, 1, None), *([(None, 0, 2), (None, 2, 3)] if inverse_triples else [])]
    Path("queries.tsv").write_text(
        "".join("\t".join("?" if value is None else str(value) for value in query) + "\n" for query in queries)
    )
    table = ask(
        "--queries", "queries.tsv", "--top-k", top_k, *KNOWN, "--candidates", "candidates.txt",
        *(["--keep-known"] if keep_known else []),
    )  # fmt: skip
    rows = table.itertuples()
    for head, relation, tail in queries:
        if tail is None:
            known = {t for h, r, t in KNOWN_TRIPLES if (h, r) == (head, relation)}
            query = (head, 2 * relation if inverse_triples else relation)
        else:
            known = {h for h, r, t in KNOWN_TRIPLES if (r, t) == (relation, tail)}
            query = (tail, 2 * relation + 1)
        expected = by_hand(model, query, known=known, candidates=candidates, keep_known=keep_known)
        for entity, rank, score, is_known in expected[:top_k]:
            row = next(rows)
            triple = (head, relation, entity) if tail is None else (entity, relation, tail)
            assert (row.head_id, row.relation_id, row.tail_id) == triple
            assert (row.head, row.relation, row.tail) == (ENTITIES[triple[0]], RELATIONS[relation], ENTITIES[triple[2]])
            assert (row.rank, row.known) == (rank, is_known)
            assert row.score == pytest.approx(score, rel=1e-4, abs=1e-6)
    assert next(rows, None) is None


def test_ties_share_their_mean_rank_and_are_listed_by_id(project, model, inverse_triples):
    with torch.no_grad():
        model.entity_embeddings.weight[2:] = 0
    save_native("model.pt", model, inverse_triples=inverse_triples)
    table = ask("--head", "1", "--relation", "2", "--top-k", "6")
    tied = table[table["tail_id"] >= 2]
    assert tied["tail_id"].tolist() == [2, 3, 4, 5]
    ahead = (table["score"] > tied["score"].iloc[0]).sum()
    assert tied["rank"].tolist() == [ahead + 2.5] * 4
    first = ask("--head", "1", "--relation", "2", "--top-k", ahead + 2)
    assert first["tail_id"].tolist() == table["tail_id"].tolist()[: ahead + 2]
    assert first["rank"].tolist() == table["rank"].tolist()[: ahead + 2]


def test_a_converted_checkpoint_and_a_directory_of_epochs_answer_alike(project, model, inverse_triples):
    expected = ask("--head", "aspirin", "--relation", "treats")
    Path("epochs").mkdir()
    loaded = torch.load("model.pt", weights_only=True)
    torch.save(to_pykeen_checkpoint(loaded), "converted.pt")
    Path("model.pt").rename("epochs/checkpoint_epoch_4.pt")
    save_native("epochs/checkpoint_epoch_2.pt", make_small_conve().float(), inverse_triples=inverse_triples)
    for path in ("converted.pt", "epochs"):
        answers = ask("--head", "aspirin", "--relation", "treats", "--model-path", path)
        assert answers["tail"].tolist() == expected["tail"].tolist()
        np.testing.assert_allclose(answers["score"], expected["score"], rtol=1e-4)


# ---------------------------------------------------------------------------------------------------------------
# In and out


def test_labels_ids_and_names_ask_the_same(project):
    tables = [
        ask("--head", head, "--relation", relation, *more)
        for head, relation, *more in (
            ("aspirin", "treats"), ("0", "0"), ("0", "treats"), ("Aspirin (drug)", "0", "--node-name-dict", "names.txt")
        )
    ]  # fmt: skip
    for table in tables[1:]:
        assert table.drop(columns=["head_name", "tail_name"]).equals(tables[0].drop(columns=["head_name", "tail_name"]))
    assert set(tables[0]["head_name"]) == {"aspirin"}
    assert set(tables[3]["head_name"]) == {"Aspirin (drug)"}
    assert tables[0].columns.tolist() == list(COLUMNS)


def test_json_holds_the_table_and_the_question(project):
    content = ask("--head", "0", "--relation", "0", *KNOWN, output="out.json")
    table = ask("--head", "0", "--relation", "0", *KNOWN)
    assert (content["top_k"], content["keep_known"]) == (50, False)
    (result,) = content["queries"]
    assert [result[name] for name in ("head", "relation", "tail")] == ["aspirin", "treats", None]
    assert (result["num_candidates"], result["num_known"]) == (3, 3)
    pd.testing.assert_frame_equal(table, pd.DataFrame(result["predictions"]), rtol=1e-7, check_dtype=False)


def test_answers_are_printed(project):
    done = run("predict_pytorch", *ASKED, "--head", "0", "--relation", "0", *KNOWN, "-o", "out.tsv")
    first, *answers, last = done.out.splitlines()
    assert first == "aspirin — treats → ? (3 candidates, 3 known passed over)"
    table = pd.read_csv("out.tsv", sep="\t")
    assert [line.split()[-1] for line in answers] == table["tail"].tolist()
    assert last == "Written: out.tsv, 3 predictions for 1 query"


def write_labels_that_are_integers():
    """Give the graph labels that are integers, and other ids than theirs."""
    for name, letters in (("entity_to_id.tsv", ENTITIES), ("relation_to_id.tsv", RELATIONS)):
        Path(name).write_text("".join(f"{len(letters) - 1 - place}\t{place}\n" for place in range(len(letters))))
    Path("train.tsv").write_text("".join(f"{5 - h}\t{2 - r}\t{5 - t}\n" for h, r, t in TRAIN.tolist()))


@pytest.mark.parametrize("labels", [None, "numbers"])
def test_the_table_is_a_list_of_test_triples(project, labels):
    if labels:
        write_labels_that_are_integers()
    table = ask("--head", "0", "--relation", "0", "--ids", *KNOWN[:2])
    done = run("run_tracin", *ASKED, "--train", "train.tsv", "--test-triples", "out/answers.tsv", "-o", "traced.json")
    assert (done.code, done.trouble) == (0, None), done
    results = json.loads(Path("traced.json").read_text("utf-8"))["results"]
    traced = [[result["test_triple"][name] for name in ("head", "relation", "tail")] for result in results]
    assert traced == table[["head_id", "relation_id", "tail_id"]].to_numpy().tolist()
    assert [result["prediction"]["rank"] for result in results] == table["rank"].tolist()


def test_integers_that_are_ids_and_labels_ask_which_is_meant(project):
    write_labels_that_are_integers()
    Path("queries.txt").write_text("0\t0\t?\n")
    Path("candidates.txt").write_text("1\n5\n")
    by_ids = ask("--head", "0", "--relation", "0", "--ids")
    by_labels = ask("--head", "0", "--relation", "0", "--labels")
    assert set(by_ids["head_id"]) == {0}
    assert set(by_labels["head_id"]) == {len(ENTITIES) - 1}
    for asked in (("--head", "0", "--relation", "0"), ("--queries", "queries.txt")):
        assert "means one triple by ids and another by labels" in refused(*asked)
    asked = ("--queries", "queries.txt", "--candidates", "candidates.txt")
    assert sorted(ask(*asked, "--ids")["tail_id"]) == [1, 5]
    assert sorted(ask(*asked, "--labels")["tail"]) == [1, 5]
    # A name and a relation whose label is its id are no question, but the candidates still are.
    asked = ("--head", "Aspirin (drug)", "--relation", "1", "--node-name-dict", "names.txt", "--candidates")
    assert refused(*asked, "candidates.txt").startswith("candidates.txt: means some entities by ids and others")
    Path("candidates.txt").write_text("Headache\n1\n")
    assert refused(*asked, "candidates.txt").startswith("candidates.txt:2: '1' is the label of one entity and the id")
    assert sorted(ask(*asked, "candidates.txt", "--labels")["tail"]) == [1, 3]


def test_candidates_of_a_category(project):
    nodes = [
        {"id": "aspirin", "category": ["biolink:Drug", "biolink:NamedThing"]},
        {"id": "ibuprofen", "category": "biolink:Drug"},
        {"id": "PTGS2", "category": ["biolink:Gene"]},
        {"id": "another", "category": ["biolink:Drug"]},
        {"id": "head ache"},
        {"id": "fièvre", "category": 7},
    ]
    Path("nodes.jsonl").write_text("".join(json.dumps(node) + "\n" for node in nodes))
    for category in ("biolink:Drug", "Drug"):
        table = ask("--head", "3", "--relation", "0", "--nodes", "nodes.jsonl", "--candidate-category", category)
        assert sorted(table["tail"]) == ["aspirin", "ibuprofen"]
    refuse = ("--head", "3", "--relation", "0", "--nodes", "nodes.jsonl", "--candidate-category")
    assert "did you mean 'biolink:Gene'?" in refused(*refuse, "biolink:Genes")
    Path("nodes.jsonl").write_text(json.dumps({"id": "x", "category": "biolink:Drug"}) + "\n")
    assert "no node of biolink:Drug is in entity_to_id.tsv" in refused(*refuse, "biolink:Drug")


def test_unknown_candidates_are_dropped_if_that_is_asked_for(project):
    Path("candidates.txt").write_text("aspirin\nnobody\n")
    asked = ("--head", "3", "--relation", "0", "--candidates", "candidates.txt")
    assert refused(*asked).startswith("candidates.txt:2: candidate: unknown entity 'nobody'")
    assert ask(*asked, "--skip-unknown")["tail"].tolist() == ["aspirin"]


def test_a_query_whose_answers_are_all_known_has_none_left(project):
    Path("candidates.txt").write_text("2\n3\n")
    table = ask("--head", "0", "--relation", "0", *KNOWN, "--candidates", "candidates.txt")
    assert table.columns.tolist() == list(COLUMNS)
    assert len(table) == 0


# ---------------------------------------------------------------------------------------------------------------
# Refused


def refused(*arguments):
    """Return the message of a run that is refused and writes nothing."""
    done = run("predict_pytorch", *ASKED, "--output", "out/refused.tsv", *arguments)
    message = assert_refused(done, began=True)
    assert not Path("out/refused.tsv").exists()
    return message


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "nothing is asked; give --relation R"),
        (("--relation", "treats"), "neither of --head and --tail given"),
        (("--relation", "0", "--head", "0", "--tail", "1"), "both of --head and --tail given"),
        (("--queries", "test.tsv", "--relation", "0"), "--queries FILE holds all that is asked"),
        (("--relation", "0", "--head", "Aspirine"), "head: unknown entity 'Aspirine'.*did you mean 'aspirin'"),
        (("--relation", "treat", "--head", "0"), "relation: unknown relation 'treat'.*did you mean 'treats'"),
        (("--relation", "0", "--head", "6"), "head: entity id 6 is out of range"),
        (("--queries", "test.tsv"), r"test\.tsv:1: neither head nor tail is asked for"),
        (("--relation", "0", "--head", "0", "--nodes", "test.tsv"), "--candidate-category needs --nodes FILE"),
        (("--relation", "0", "--head", "0", "--candidate-category", "Drug"), "--candidate-category needs --nodes"),
        (("--relation", "0", "--head", "0", "--output", "out.csv"), r"out\.csv: the ending says what is written"),
        (("--relation", "0", "--head", "0", "--output", "train.tsv", *KNOWN), r"train\.tsv: is an input"),
        (("--relation", "0", "--head", "0", "--model-path", "no.pt"), r"no\.pt: no such file"),
        (("--relation", "0", "--head", "0", "--entity-to-id", "relation_to_id.tsv"), r"relation_to_id\.tsv: has 3"),
    ],
)
def test_what_cannot_be_asked_is_one_clear_line(project, arguments, expected):
    before = Path("train.tsv").read_bytes()
    assert pd.Series([refused(*arguments)]).str.match(expected).all()
    assert Path("train.tsv").read_bytes() == before


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("?\ttreats\t?", "head and tail are both asked for"),
        ("aspirin\t?\tPTGS2", "a relation cannot be asked for"),
        ("aspirin\ttreats", "2 columns instead of 3"),
        ("nobody\ttreats\t?", "head: unknown entity 'nobody'"),
    ],
)
def test_the_line_of_a_bad_query_is_named(project, line, expected):
    Path("queries.tsv").write_text(f"aspirin\ttreats\t?\n{line}\n")
    assert refused("--queries", "queries.tsv").startswith(f"queries.tsv:2: {expected}")


def test_heads_need_inverse_triples(project, inverse_triples):
    asked = ("--relation", "treats", "--tail", "head ache")
    if inverse_triples:
        assert set(ask(*asked)["tail"]) == {"head ache"}
    else:
        assert refused(*asked).startswith("model.pt: was trained without inverse triples, so that it ranks no heads")


def test_scores_that_are_not_finite_are_refused(project, model, inverse_triples):
    with torch.no_grad():
        model.entity_embeddings.weight[3] = 3e38
    save_native("model.pt", model, inverse_triples=inverse_triples)
    assert "scores are not finite" in refused("--head", "3", "--relation", "0")


# ---------------------------------------------------------------------------------------------------------------
# Either side explained


def explain(script, *arguments):
    done = run(
        script,
        *ASKED,
        "--train",
        "train.tsv",
        *arguments,
        "--top-k",
        "99",
        "-o" if script == "run_tracin" else "--output",
        "out.json",
    )
    assert (done.code, done.trouble) == (0, None), done
    content = json.loads(Path("out.json").read_text("utf-8"))
    (result,) = content["results"] if script == "run_tracin" else [content]
    return result, done


def by_training_triple(result):
    return {
        tuple(row[f"train_{part}"] for part in ("head", "relation", "tail")): row["influence"]
        for row in result["influences"]
    }


@pytest.mark.parametrize("inverse_triples", [True], ids=["both sides"], indirect=True)
@pytest.mark.parametrize("engine", ["reference", "shared passes", "forward passes of PyKEEN", "tracin_pytorch"])
def test_the_heads_influences_are_products_with_the_gradient_of_the_inverse_query(project, model, engine):
    Path("wanted.txt").write_text("5 2 4\n")
    if engine == "tracin_pytorch":
        given = ("tracin_pytorch", "--test-triple", "5", "2", "4")
    else:
        given = ("run_tracin", "--test-triples", "wanted.txt")
    if engine == "forward passes of PyKEEN":
        torch.save(to_pykeen_checkpoint(torch.load("model.pt", weights_only=True)), "converted.pt")
        given += ("--model-path", "converted.pt")
    if engine not in ("reference", "tracin_pytorch"):
        given += ("--use-optimized-tracin",)
    result, done = explain(*given, "--predicted-side", "head")
    double = model.double()
    names = [name for name, _ in double.named_parameters()]
    inverse = torch.tensor([[4, 5, 5]])
    rows = TRAIN * (1, 2, 1)
    expected = 0.001 * gradients_by_hand(double, inverse, names) @ gradients_by_hand(double, rows, names).T
    found = by_training_triple(result)
    for triple, influence in zip(map(tuple, TRAIN.tolist()), expected[0].tolist(), strict=True):
        assert found[triple] == pytest.approx(influence, rel=1e-3, abs=1e-5 * expected.abs().max().item())
    assert result["prediction"]["predicted_side"] == "head"
    assert "; the head is explained" in done.out


@pytest.mark.parametrize("inverse_triples", [True], ids=["both sides"], indirect=True)
def test_gauss_newton_explains_the_head_as_it_does_the_tail_of_the_turned_graph(project, model, inverse_triples):
    Path("wanted.txt").write_text("5 2 4\n")
    head, _ = explain(
        "run_tracin", "--test-triples", "wanted.txt", "--method", "gauss-newton", "--predicted-side", "head",
        "--report", "head.html",
    )  # fmt: skip
    place = head["prediction"]
    page = Path("head.html").read_text("utf-8")
    assert f"? — {RELATIONS[2]} → {ENTITIES[4]}" in page
    assert f"<b>{place['head_rank']:g}</b><span>of {place['possible_heads']} possible heads</span>" in page
    # The same model of the graph in which every triple is turned around: its relation rows change places.
    swapped = model.relation_embeddings.weight.detach().clone()[[1, 0, 3, 2, 5, 4]]
    with torch.no_grad():
        model.relation_embeddings.weight.copy_(swapped)
    save_native("model.pt", model, inverse_triples=True)
    Path("train.tsv").write_text(
        "".join(f"{ENTITIES[t]}\t{RELATIONS[r]}\t{ENTITIES[h]}\n" for h, r, t in TRAIN.tolist()), "utf-8"
    )
    Path("wanted.txt").write_text("4 2 5\n")
    tail, _ = explain("run_tracin", "--test-triples", "wanted.txt", "--method", "gauss-newton")
    turned = {(t, r, h): influence for (h, r, t), influence in by_training_triple(tail).items()}
    assert by_training_triple(head) == pytest.approx(turned, rel=1e-3, abs=1e-5)
    assert (head["prediction"]["head_rank"], head["prediction"]["head_score"]) == pytest.approx(
        (tail["prediction"]["rank"], tail["prediction"]["score"]), rel=1e-5
    )


def test_the_rank_of_the_head_is_that_among_the_candidates(project, inverse_triples):
    result, done = explain("run_tracin", "--test", "test.tsv", "--max-test-triples", "1", *KNOWN[:1], "valid.tsv")
    place = result["prediction"]
    assert ("head_rank" in place) == ("possible heads" in done.out) == inverse_triples
    if inverse_triples:
        # TEST[0]
        heads = ask("--relation", "2", "--tail", "4", *KNOWN)
        assert place["head_rank"] == heads.loc[heads["head_id"] == 5, "rank"].item()
        assert place["possible_heads"] == len(heads)
        assert place["predicted_side"] == "tail"


def test_sides_that_cannot_be_explained_are_refused(project, inverse_triples):
    given = (*ASKED, "--train", "train.tsv", "--test", "test.tsv", "-o", "refused.json", "--predicted-side", "head")
    message = assert_refused(run("run_tracin", *given, "--training-loss"), began=True)
    assert message.startswith("--training-loss is of both sides at once")
    if not inverse_triples:
        message = assert_refused(run("run_tracin", *given), began=True)
        assert message.startswith("model.pt: was trained without inverse triples, so that it predicts no heads")
    assert not Path("refused.json").exists()

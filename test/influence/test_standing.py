"""How an answer stands, against loops over all entities and all questions."""

import numpy as np
import pytest
import torch
from conftest import TEST, TRAIN, TREATS, VALID, make_small_conve
from conve_examples import trained_conve

from conve_tracin.data.graph import Graph
from conve_tracin.data.kgx.categories import Categories, read_categories
from conve_tracin.data.vocabulary import Vocabulary
from conve_tracin.errors import InputError
from conve_tracin.influence import scorers, standing
from conve_tracin.influence.scorers import ConvEScorer
from conve_tracin.influence.standing import FIRST, SEED, RelationSamples, ask_others, best_of_chunks, first_places
from conve_tracin.influence.summary import SummarySettings, describe_prediction

CATEGORIES = Categories(("Disease", "Drug"), np.array([1, 1, 0, 0, 0, -1]))


def rank_by_hand(scores, answer, rivals):
    others = [scores[one] for one in rivals if one != answer]
    return 1 + sum(score > scores[answer] for score in others) + sum(score == scores[answer] for score in others) / 2


@pytest.mark.parametrize("further", [None, np.concatenate([VALID, TEST])])
@pytest.mark.parametrize("triple", [(1, TREATS, 4), (0, TREATS, 2), (5, 2, 3), (0, 1, 5), (4, TREATS, 5)])
@pytest.mark.parametrize("inverse", [False, True])
def test_ranks_among_some_are_those_of_a_loop(triple, further, inverse):
    model = make_small_conve(num_relations=6)
    settings = SummarySettings(graph=Graph(TRAIN, 6, 3), known_triples=further, categories=CATEGORIES)
    prediction = describe_prediction(ConvEScorer(model, inverse_triples=True), triple, settings)
    head, relation, tail = triple
    asked, answer = (tail, head) if inverse else (head, tail)
    found = (prediction.head if inverse else prediction).standing
    scores = model.score(torch.full((6,), asked), torch.full((6,), 2 * relation + inverse), torch.arange(6)).tolist()

    def answers(triples):
        pairs = [(h, t) for h, r, t in triples.tolist() if r == relation]
        return [(t, h) if inverse else (h, t) for h, t in pairs]

    true = answers(TRAIN) + ([] if further is None else answers(further))
    known = {one for question, one in true if question == asked}
    ever = {one for _, one in answers(TRAIN)} | {answer}
    rivals = {one for one in range(6) if one == answer or one not in known}
    assert found.among_answers.rank == rank_by_hand(scores, answer, ever & rivals)
    assert found.among_answers.num_candidates == len(ever & rivals)
    if CATEGORIES.name(answer) is None:
        assert found.in_category is None
    else:
        alike = {one for one in range(6) if CATEGORIES.name(one) == CATEGORIES.name(answer)}
        assert found.in_category.category == CATEGORIES.name(answer)
        assert found.in_category.rank == rank_by_hand(scores, answer, alike & rivals)
        assert found.in_category.num_candidates == len(alike & rivals)
    assert [one.entity for one in found.best] == sorted(range(6), key=lambda entity: -scores[entity])[:FIRST]
    assert {one.entity for one in found.best if one.known} == known
    assert [one.score for one in found.best] == pytest.approx(sorted(scores, reverse=True))


@pytest.fixture
def graph():
    """A relation whose 40 questions have one to three answers among 90 entities, another relation, and scores."""
    random = np.random.default_rng(3)
    pairs = {(int(head), int(tail)) for head, tail in random.integers((0, 40), (40, 90), size=(90, 2))}
    training = np.array(sorted(pairs))
    scores = torch.from_numpy(random.standard_normal((40, 90)))
    return training, training[::9] + np.array([0, 1]), scores


def ask(graph):
    training, known, scores = graph
    return ask_others(lambda queries, _: scores[queries[:, 0]].clone(), 7, training, known, 90)


def test_other_questions_are_counted_as_by_a_loop(graph):
    training, known, scores = graph
    found = ask(graph)
    true = {}
    for question, answer in np.concatenate([training, known]).tolist():
        true.setdefault(question, set()).add(answer)
    questions = sorted(set(training[:, 0].tolist()))
    for answer in (0, 41, 55, 89):
        of_others = found.of_others(questions[0], answer)
        asked = [one for one in questions[1:] if answer not in true[one]]
        ranks = [
            1 + sum(scores[one, rival] > scores[one, answer] for rival in range(90) if rival not in true[one])
            for one in asked
        ]
        assert of_others.num_questions == len(questions)
        assert of_others.num_asked == len(asked)
        assert of_others.num_among_first == sum(rank <= FIRST for rank in ranks)


def test_of_many_questions_a_seeded_sample_is_asked(graph, monkeypatch):
    monkeypatch.setattr(standing, "OTHER_QUESTIONS", 15)
    found = ask(graph)
    questions = np.unique(graph[0][:, 0])
    assert found.asked.tolist() == sorted(np.random.default_rng(SEED).choice(questions, 15, replace=False).tolist())
    assert found.num_questions == len(questions)
    # Rows are asked for in batches: their size changes nothing.
    monkeypatch.setattr(standing, "BATCH_SIZE", 4)
    np.testing.assert_array_equal(ask(graph).first, found.first)


def test_a_relation_is_asked_about_once(graph):
    calls = []
    samples = RelationSamples()
    for relation in (1, 2, 1, ~1, 2):
        samples.of(relation, lambda relation=relation: calls.append(relation) or ask(graph))
    assert calls == [1, 2, ~1]


def test_a_relation_that_training_lacks_has_no_other_questions():
    model = make_small_conve(num_relations=4)
    settings = SummarySettings(graph=Graph(TRAIN, 6, 4))
    found = describe_prediction(ConvEScorer(model), (0, 3, 1), settings).standing
    assert (found.among_answers.rank, found.among_answers.num_candidates) == (1, 1)
    assert (found.elsewhere.num_questions, found.elsewhere.num_asked) == (0, 0)


def test_the_most_specific_category_is_taken(tmp_path):
    nodes = tmp_path / "nodes.jsonl"
    nodes.write_text(
        '{"id": "a", "category": ["biolink:NamedThing", "biolink:Disease"]}\n'
        '{"id": "b", "category": ["biolink:Disease", "biolink:NamedThing"]}\n'
        '{"id": "c", "category": ["biolink:NamedThing", "biolink:Gene"]}\n'
        '{"id": "d", "category": "biolink:NamedThing"}\n'
        '{"id": "e"}\n'
        '{"id": "elsewhere", "category": ["biolink:Gene"]}\n'
    )
    found = read_categories(nodes, Vocabulary("entity", ("e", "d", "c", "b", "a")))
    assert [found.name(entity) for entity in range(5)] == [None, "NamedThing", "Gene", "Disease", "Disease"]
    assert found.names[0] == "Disease"
    # Of entities one is of the kind, lists it, or has an unknown kind: then nothing is said.
    assert found.are_all_others(np.array([2, 1, 2]), "Disease")
    assert not found.are_all_others(np.array([2, 3]), "Disease")
    assert not found.are_all_others(np.array([2, 3]), "NamedThing")
    assert not found.are_all_others(np.array([2, 0]), "Disease")
    assert found.are_all_others(np.array([], dtype=int), "Disease")
    with pytest.raises(InputError, match=r"nodes\.jsonl: no node with a category is in"):
        read_categories(nodes, Vocabulary("entity", ("x", "e")))
    nodes.write_text('{"id": "a", "category": "biolink:Disease"}\nno node\n')
    with pytest.raises(InputError, match=r"nodes\.jsonl:2: .*a node has an id"):
        read_categories(nodes, Vocabulary("entity", ("a",)))


def test_nodes_that_know_few_of_the_entities_are_warned_of(tmp_path, caplog):
    nodes = tmp_path / "nodes.jsonl"
    nodes.write_text('{"id": "a", "category": "biolink:Disease"}\n')
    read_categories(nodes, Vocabulary("entity", ("a", "b")))
    assert not caplog.messages
    read_categories(nodes, Vocabulary("entity", ("a", "b", "c")))
    assert "nodes.jsonl: tells the category of 1 of 3 entities" in caplog.text


@pytest.mark.parametrize("entity_bias", [False, True])
@pytest.mark.parametrize("size", [1, 7, 30, 2048])
def test_chunks_of_the_entities_find_what_all_at_once_do(entity_bias, size, monkeypatch):
    monkeypatch.setattr(scorers, "ENTITIES_AT_ONCE", size)
    scorer = ConvEScorer(trained_conve(entity_bias=entity_bias)[0].double())
    random = np.random.default_rng(5)
    training, known = random.integers(0, 30, size=(80, 2)), random.integers(0, 30, size=(20, 2))
    whole = ask_others(scorer.score_queries, 1, training, known, 30)
    chunked = ask_others(scorer.score_queries, 1, training, known, 30, score_chunks=scorer.score_chunks)
    np.testing.assert_array_equal(chunked.first, whole.first)
    np.testing.assert_array_equal(chunked.asked, whole.asked)


def test_answers_that_are_kept_are_those_of_the_same_known_triples(graph):
    training, known, scores = graph
    kept = {}

    def ask_again(known, scores):
        keep = lambda name, make: kept[name] if name in kept else kept.setdefault(name, make())  # noqa: E731
        return ask_others(lambda queries, _: scores[queries[:, 0]].clone(), 7, training, known, 90, keep=keep)

    first = ask_again(known, scores)
    np.testing.assert_array_equal(first.first, ask(graph).first)
    np.testing.assert_array_equal(ask_again(known, -scores).first, first.first)
    other = ask_again(known[1:], -scores)
    np.testing.assert_array_equal(other.first, ask((training, known[1:], -scores)).first)
    assert len(kept) == 2


def test_known_entities_are_never_among_the_best_of_chunks():
    scores = torch.tensor([[5.0, 4, 3, 2, 1], [1, 2, 3, 4, 5], [0, 0, 0, 0, 0]])
    known = [np.array([0, 2, 3]), np.array([], dtype=np.int64), np.arange(5)]
    chunks = [(0, scores[:, :2].clone()), (2, scores[:, 2:4].clone()), (4, scores[:, 4:].clone())]
    assert best_of_chunks(chunks, known, 3).tolist() == [[1, 4, -1], [4, 3, 2], [-1, -1, -1]]
    assert best_of_chunks([(0, scores.clone())], known, 3).tolist() == [[1, 4, -1], [4, 3, 2], [-1, -1, -1]]


@pytest.mark.parametrize("count", [1, 3, 10, 40])
@pytest.mark.parametrize("nan", [0, 2, 20])
def test_first_places_are_those_of_a_stable_sort(count, nan):
    scores = torch.from_numpy(np.random.default_rng(count).integers(0, 6, 40).astype(float))
    scores[:nan] = torch.nan
    expected = scores.sort(descending=True, stable=True).indices[:count]
    assert first_places(scores, count).tolist() == expected.tolist()

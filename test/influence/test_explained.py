"""The outputs of the influence scripts, read back."""

import json
import re

import pytest

from conve_tracin.data.vocabulary import Vocabulary
from conve_tracin.errors import InputError
from conve_tracin.influence.explained import read_explained

ENTITIES, RELATIONS = Vocabulary("entity", ("a", "b", "c")), Vocabulary("relation", ("r", "s"))


def row(head, relation, tail, influence):
    ids = {"train_head": head, "train_relation": relation, "train_tail": tail}
    return ids | {"influence": influence, "train_head_key": "abc"[head]}


def result(head=0, relation=0, tail=1, influences=None, **more):
    found = [row(0, 1, 2, -3.0), row(1, 0, 2, 0.5), row(2, 1, 0, 2.0), row(0, 0, 0, 0.0)]
    influences = found if influences is None else influences
    return {"test_triple": {"head": head, "relation": relation, "tail": tail}, "influences": influences, **more}


def read(tmp_path, *contents):
    paths = [tmp_path / f"{number}.json" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return read_explained(paths, ENTITIES, RELATIONS)


def test_proponents_are_what_speaks_for_it_strongest_first(tmp_path):
    (explained,) = read(tmp_path, result())
    assert (explained.triple, explained.side) == ((0, 0, 1), "tail")
    assert explained.proponents(10) == [((2, 1, 0), 2.0), ((1, 0, 2), 0.5)]
    assert explained.proponents(1) == [((2, 1, 0), 2.0)]


def test_files_of_one_and_of_several_results_are_read_in_order(tmp_path):
    side = {"prediction": {"predicted_side": "head"}}
    several = {"mode": "test", "results": [result(1), result(0, **side)]}
    found = read(tmp_path, several, result(2), result(0))
    assert [each.triple[0] for each in found] == [1, 0, 2, 0]
    assert [each.side for each in found] == ["tail", "head", "tail", "tail"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{\n"a": ', "0.json:2: is not valid JSON"),
        ("[" * 100_000, "0.json: cannot be read as JSON"),
        ([1], "0.json: holds no test_triple with influences"),
        ({"results": []}, "0.json: its results are empty"),
        ({"mode": "self", "self_influences": []}, "0.json: holds self-influences"),
        (result(influences=3), "0.json: its influences are no list"),
        (result(influences=[3]), "0.json: influences[0]: has no id train_head"),
        (result(head="a"), "0.json: test_triple: has no id head"),
        (result(tail=3), "0.json: test_triple: its tail is not that of"),
        (result(head=True), "0.json: test_triple: has no id head"),
        (result(influences=[row(0, 0, 1, 1.0) | {"train_head_key": "b"}]), "influences[0]: its train_head is not that"),
        (result(influences=[row(0, 0, 1, float("nan"))]), "0.json: influences[0]: has no finite influence"),
        (result(influences=[row(0, 0, 1, "1")]), "0.json: influences[0]: has no finite influence"),
        (result(prediction={"predicted_side": "both"}), "0.json: its predicted_side is neither head nor tail"),
        ({"results": [result(), result()]}, "0.json: results[1]: is the prediction of"),
    ],
)
def test_other_files_are_refused_with_their_name(tmp_path, content, message):
    with pytest.raises(InputError, match=re.escape(message)):
        read(tmp_path, content)

"""The table of what stands behind training triples, read for a few of them."""

import gzip

import numpy as np
import pytest

from conve_tracin.data.evidence import as_text, read_columns, read_evidence, require_evidence_of
from conve_tracin.data.evidence_columns import EVIDENCE_COLUMNS
from conve_tracin.data.vocabulary import Vocabulary
from conve_tracin.errors import InputError

ENTITIES = Vocabulary("entity", ("a", "b b", "c", "é"))
RELATIONS = Vocabulary("relation", ("r", "s"))
MAPPINGS = {"entities": ENTITIES, "relations": RELATIONS}


def line(head, relation, tail, **columns):
    return "\t".join([head, relation, tail, *(columns.get(name, "") for name in EVIDENCE_COLUMNS[3:])])


LINES = [
    line("a", "r", "b b", edge_id="e1", publications="PMID:1|PMID:2", has_confidence_score="0.5", evidence_count="3"),
    line("c", "r", "b b", edge_id="e2", primary_knowledge_source="infores:ctd"),
    line("a", "r", "b b", edge_id="e3", agent_type="text_mining_agent", has_confidence_score="nan"),
    line("a", "s", "b b", edge_id="e4"),
    line("é", "s", "a", edge_id="e5", supporting_text="one|two", max_research_phase="unknown"),
]


def write(path, lines, header=EVIDENCE_COLUMNS, *, compressed=True, end="\n"):
    text = (end.join(["\t".join(header), *lines]) + end).encode()
    path.write_bytes(gzip.compress(text) if compressed else text)
    return path


@pytest.mark.parametrize(("compressed", "end"), [(True, "\n"), (False, "\n"), (False, "\r\n")])
def test_edges_of_the_wanted_triples_in_the_order_of_the_file(tmp_path, compressed, end):
    path = write(tmp_path / "evidence.tsv", LINES, compressed=compressed, end=end)
    evidence = read_evidence(path, {(0, 0, 1), (3, 1, 0), (2, 1, 2)}, **MAPPINGS)
    assert evidence.columns == EVIDENCE_COLUMNS[3:]
    assert evidence.edges == {
        (0, 0, 1): [
            {"edge_id": "e1", "publications": ["PMID:1", "PMID:2"], "has_confidence_score": 0.5, "evidence_count": 3},
            {"edge_id": "e3", "agent_type": "text_mining_agent", "has_confidence_score": "nan"},
        ],
        (3, 1, 0): [{"edge_id": "e5", "supporting_text": ["one", "two"], "max_research_phase": "unknown"}],
    }
    assert evidence.of((2, 1, 2)) == []
    assert as_text(evidence.of((0, 0, 1))[0]["publications"]) == "PMID:1|PMID:2"


def test_the_same_is_read_across_blocks(tmp_path, monkeypatch):
    path = write(tmp_path / "evidence.tsv", LINES * 50)
    wanted = {(0, 0, 1), (3, 1, 0)}
    whole = read_evidence(path, wanted, **MAPPINGS)
    monkeypatch.setattr("conve_tracin.data.text.BLOCK_BYTES", 300)
    assert read_evidence(path, wanted, **MAPPINGS).edges == whole.edges
    assert len(whole.of((0, 0, 1))) == 100


def test_unknown_columns_are_kept(tmp_path):
    path = write(
        tmp_path / "evidence.tsv", ["a\tr\tc\te1\t<b>\t"], ("head", "relation", "tail", "edge_id", "mine", "other")
    )
    evidence = read_evidence(path, {(0, 0, 2)}, **MAPPINGS)
    assert evidence.columns == ("edge_id", "mine", "other")
    assert evidence.of((0, 0, 2)) == [{"edge_id": "e1", "mine": "<b>"}]


@pytest.mark.parametrize(
    ("header", "lines", "message"),
    [
        (("head", "tail", "relation", "edge_id"), [], ":1: the columns are not"),
        (("head", "relation", "tail"), [], ":1: the columns are not"),
        (("a", "r", "b"), ["a\tr\tb b"], ":1: the columns are not"),
        (("head", "relation", "tail", "x", "x"), [], ":1: the column 'x' stands twice"),
        (EVIDENCE_COLUMNS, [LINES[1], "a\tr\tb b\te1"], r":3: 4 columns instead of 15"),
    ],
)
def test_other_tables_are_refused(tmp_path, header, lines, message):
    path = write(tmp_path / "evidence.tsv", lines, header)
    with pytest.raises(InputError, match=f"^{path}{message}"):
        read_evidence(path, {(0, 0, 1)}, **MAPPINGS)


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "evidence.tsv").write_text("")
    with pytest.raises(InputError, match="is empty"):
        read_columns(tmp_path / "evidence.tsv")


def test_evidence_of_another_graph_is_told_by_any_training_triple(tmp_path):
    path = write(tmp_path / "evidence.tsv", LINES)
    require_evidence_of(path, np.array([[2, 1, 2], [3, 1, 0]]), **MAPPINGS)
    with pytest.raises(InputError, match="none of the training triples stands in it"):
        require_evidence_of(path, np.array([[2, 1, 2], [0, 1, 0]]), **MAPPINGS)
    with pytest.raises(InputError, match="none of the training triples"):
        require_evidence_of(write(path, ["short", "x\ty\tz\tw"]), np.array([[2, 1, 2]]), **MAPPINGS)

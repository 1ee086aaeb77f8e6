"""--evidence and --reasons of the influence scripts: JSON, CSV, terminal and page, and what fits nothing."""

import csv
import gzip
import json
from pathlib import Path

import browser
import pytest
from command_lines import assert_refused, run
from page_content import Page
from project_files import COMMANDS, NAMES, TRACED, clean, project, write  # noqa: F401 - fixtures

from conve_tracin.data.evidence_columns import EVIDENCE_COLUMNS

PUBLICATIONS = ("PMID:17016423", "PMC:PMC3531190", "doi:10.7554/eLife.26726", "clinicaltrials:NCT00000102", "PMID:5")
HOSTILE = (
    "javascript:alert(1)", 'PMID:1" onclick="alert(1)', "<script>alert(1)</script>", "https://evil.example/", "=2+5",
    "<img src=x onerror=alert(1)>",
)  # fmt: skip
EDGES = [
    ("aspirin", "treats", "head ache", {
        "edge_id": "e1", "primary_knowledge_source": "infores:drugcentral", "publications": "|".join(PUBLICATIONS),
        "knowledge_level": "knowledge_assertion", "agent_type": "manual_agent",
    }),
    ("aspirin", "treats", "head ache", {
        "edge_id": "e2", "primary_knowledge_source": "infores:semmeddb", "agent_type": "text_mining_agent",
        "supporting_text": HOSTILE[2], "publications": "|".join(HOSTILE),
    }),
    ("ibuprofen", "treats", "fièvre", {"edge_id": "=e3", "knowledge_level": "prediction",
                                       "primary_knowledge_source": HOSTILE[5]}),
    ("MONDO:0005148", "associated with", "fièvre", {
        "edge_id": "e4", "primary_knowledge_source": "infores:drugcentral",
    }),
    ("of", "another", "graph", {"edge_id": "e5"}),
]  # fmt: skip
# Of the test triple: aspirin inhibits head ache.
REASONS = [
    {"triple": ["aspirin", "inhibits", "head ache"], "explanations": [
        {"triples": [["aspirin", "inhibits", "PTGS2"], ["PTGS2", "associated with", "head ache"]]},
        {"triples": [["aspirin", "treats", "fièvre"], ["fièvre", "treats", "head ache"]]},
    ]},
    {"triple": ["aspirin", "inhibits", "fièvre"], "reasons": [["ibuprofen", "biolink:treats", "fièvre"]]},
    {"triple": ["PTGS2", "treats", "fièvre"], "reasons": [["PTGS2", "treats", "aspirin"]]},
]  # fmt: skip
SHOWN = ("--top-k", "99", "--evidence", "evidence.tsv.gz", "--reasons", "reasons.jsonl")
TEST_TRIPLE = ("--test-triple", "aspirin", "inhibits", "head ache")
ONE = ("tracin_pytorch", *TRACED, *NAMES, *TEST_TRIPLE, "--output", "out/one.json")


def write_evidence(path, edges):
    rows = ([*triple, *(said.get(name, "") for name in EVIDENCE_COLUMNS[3:])] for *triple, said in edges)
    lines = [EVIDENCE_COLUMNS, *rows]
    Path(path).write_bytes(gzip.compress("".join("\t".join(line) + "\n" for line in lines).encode()))


@pytest.fixture
def explained(project):
    write_evidence("evidence.tsv.gz", EDGES)
    write("reasons.jsonl", "".join(json.dumps(line) + "\n" for line in REASONS))
    write("asked.txt", "aspirin\tinhibits\thead ache\naspirin\tinhibits\tfièvre\nibuprofen\tassociated with\tPTGS2\n")


def key(row):
    return row["train_head_key"], row["train_relation_key"], row["train_tail_key"]


def test_each_influence_and_each_step_has_its_edges(explained):
    done = run(*ONE, *SHOWN)
    assert done.code == 0, done
    result = json.loads(Path("out/one.json").read_text(encoding="utf-8"))
    found = {key(row): row["evidence"] for row in result["influences"]}
    first, second = found["aspirin", "treats", "head ache"]
    assert first == EDGES[0][3] | {"publications": list(PUBLICATIONS)}
    assert second == EDGES[1][3] | {"publications": list(HOSTILE), "supporting_text": [HOSTILE[2]]}
    assert [edge["edge_id"] for edge in found["MONDO:0005148", "associated with", "fièvre"]] == ["e4"]
    assert found["ibuprofen", "inhibits", "PTGS2"] == []
    of_triple = {
        tuple(row[f"train_{part}"] for part in ("head", "relation", "tail")): row for row in result["influences"]
    }
    assert result["paths"]
    for path in result["paths"]:
        for triple, edges, is_reason in zip(path["triples"], path["evidence"], path["is_reason"], strict=True):
            row = of_triple[tuple(triple)]
            assert (edges, is_reason) == (row["evidence"], row["is_reason"])
    assert "[DrugCentral, SemMedDB (text-mined), 11 publications]" in done.out


def test_known_reasons_are_marked_and_ranked(explained):
    assert run(*ONE, *SHOWN).code == 0
    result = json.loads(Path("out/one.json").read_text(encoding="utf-8"))
    marked = {key(row) for row in result["influences"] if row["is_reason"]}
    assert marked == {
        ("aspirin", "inhibits", "PTGS2"), ("PTGS2", "associated with", "head ache"), ("aspirin", "treats", "fièvre"),
    }  # fmt: skip
    rows = sorted(result["influences"], key=lambda row: -row["influence"])
    ranks = [place for place, row in enumerate(rows, start=1) if row["is_reason"]]
    assert result["reasons"]["ranks"] == ranks
    assert result["reasons"]["training_triples"] == len(rows) == 11
    assert result["reasons"]["reciprocal_rank"] == 1 / ranks[0]
    assert result["reasons"]["average_precision"] == pytest.approx(
        sum(i / rank for i, rank in enumerate(ranks, start=1)) / 3
    )
    # The head's own triples with a reason and others: aspirin treats three.
    values = {row["train_tail_key"]: row["influence"] for row in rows if key(row)[:2] == ("aspirin", "treats")}
    others = [value for tail, value in values.items() if tail != "fièvre"]
    assert result["reasons"]["head_auc"] == sum(values["fièvre"] > other for other in others) / 2
    assert 0 < result["reasons"]["p_value"] <= 1


def test_the_table_has_both_at_its_end(explained):
    done = run("run_tracin", *TRACED, *NAMES, "--test-triples", "asked.txt", "-o", "out/i.json", "--csv-output", *SHOWN)
    assert done.code == 0, done
    with Path("out/i.csv").open(encoding="utf-8", newline="") as file:
        header, *lines = csv.reader(file)
    assert tuple(header[14:]) == ("IsGroundTruth", "InPath", "OnSpecificPath", *EVIDENCE_COLUMNS[3:])
    rows = [dict(zip(header, line, strict=True)) for line in lines]
    of_first = {
        (row["TrainHead"], row["TrainRel"], row["TrainTail"]): row for row in rows
        if (row["TestRel"], row["TestTail"]) == ("inhibits", "head ache")
    }  # fmt: skip
    flags = {triple: tuple(row[name] == "True" for name in header[14:17]) for triple, row in of_first.items()}
    # In training as a whole: by way of PTGS2; of the other explanation a half; between entities of both; elsewhere.
    assert flags["aspirin", "inhibits", "PTGS2"] == (True, True, True)
    assert flags["aspirin", "treats", "fièvre"] == (True, True, False)
    assert flags["aspirin", "treats", "head ache"] == (False, True, False)
    assert flags["ibuprofen", "inhibits", "PTGS2"] == (False, False, False)
    row = of_first["aspirin", "treats", "head ache"]
    assert row["edge_id"] == "e1 || e2"
    assert row["publications"] == "|".join(PUBLICATIONS) + " || " + "|".join(HOSTILE)
    assert row["agent_type"] == "manual_agent || text_mining_agent"
    assert row["hetio_source"] == ""
    assert of_first["ibuprofen", "treats", "fièvre"]["edge_id"] == "'=e3"
    assert {row["IsGroundTruth"] for row in rows if row["TestRel"] == "associated with"} == {"False"}


def test_several_predictions_have_a_summary(explained):
    done = run("run_tracin", *TRACED, *NAMES, "--test-triples", "asked.txt", "-o", "out/i.json", *SHOWN)
    content = json.loads(Path("out/i.json").read_text(encoding="utf-8"))
    first, second, third = (result["reasons"] for result in content["results"])
    assert third is None
    summary = content["reasons"]
    assert summary["predictions"] == 2
    assert summary["mean_reciprocal_rank"] == pytest.approx((first["reciprocal_rank"] + second["reciprocal_rank"]) / 2)
    assert summary["mean_average_precision"] == pytest.approx(
        (first["average_precision"] + second["average_precision"]) / 2
    )
    assert f"Known reasons of 2 predictions: MRR {summary['mean_reciprocal_rank']:.3f}" in done.out
    assert "reasons.jsonl: no reason of 1 of its 3 predictions is a training triple" in done.err
    assert "reasons.jsonl: has no reason among the training triples for 1 of 3 test triples" in done.err


def test_a_file_for_each_test_triple_holds_the_same(explained):
    together = ("run_tracin", *TRACED, *NAMES, "--test-triples", "asked.txt", *SHOWN)
    assert run(*together, "-o", "out/i.json").code == 0
    assert run(*together, "-o", "apart", "--output-per-triple").code == 0
    results = json.loads(Path("out/i.json").read_text(encoding="utf-8"))["results"]
    apart = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(Path("apart").glob("*.json"))]
    assert apart == results


def test_without_the_flags_nothing_is_there(explained):
    assert run(*ONE, "--report", "out/plain.html").code == 0
    result = json.loads(Path("out/one.json").read_text(encoding="utf-8"))
    assert "reasons" not in result
    assert not {"evidence", "is_reason"} & set(result["influences"][0])
    assert not {"evidence", "is_reason"} & set(result["paths"][0])
    page = Page(Path("out/plain.html").read_text(encoding="utf-8"))
    assert not [attributes for attributes in page.attributes("a") if not attributes["href"].startswith("#")]
    assert not page.texts("select", "source-choice")


# ---------------------------------------------------------------------------------------------------------------
# The page


@pytest.fixture
def page(explained):
    assert run(*ONE, *SHOWN, "--report", "out/report.html").code == 0
    return Page(Path("out/report.html").read_text(encoding="utf-8"))


def test_publications_and_entities_are_links_and_hostile_ones_are_text(page):
    links = {attributes["href"] for attributes in page.attributes("a")}
    assert links == {
        "https://pubmed.ncbi.nlm.nih.gov/17016423/", "https://pmc.ncbi.nlm.nih.gov/articles/PMC3531190/",
        "https://doi.org/10.7554/eLife.26726", "https://clinicaltrials.gov/study/NCT00000102",
        "https://pubmed.ncbi.nlm.nih.gov/5/", "https://purl.obolibrary.org/obo/MONDO_0005148",
    }  # fmt: skip
    shown = page.texts("bdi")
    assert set(HOSTILE) <= set(shown)
    assert {name for name, _ in page.elements}.isdisjoint({"img", "iframe", "object", "embed", "base", "form"})
    for _, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)
    assert all(attributes.get("rel") == "noreferrer" for attributes in page.attributes("a"))


def test_sources_marks_and_reasons_are_named(page):
    assert {"DrugCentral", "SemMedDB text-mined", f"{HOSTILE[5]} predicted"} <= set(page.texts("span", "source"))
    marks = page.texts("span", "mark")
    assert {"text-mined", "predicted", "known reason"} <= set(marks)
    assert "3 known reasons have the ranks" in page.texts("p", "reasons")[0]


@pytest.mark.skipif(browser.MISSING is not None, reason=str(browser.MISSING))
def test_rows_can_be_chosen_by_source(page):
    with browser.open_browser() as window:
        window.open(Path("out/report.html"))
        shown = """
            const table = document.querySelector("table.influences");
            const choice = table.previousElementSibling.querySelector("select.source-choice");
            choice.value = arguments[0];
            choice.dispatchEvent(new Event("change"));
            return [...table.tBodies[0].rows].filter((row) => !row.hidden).map((row) => row.dataset.sources);
        """
        everything = window.run(shown, "")
        for source in ("infores:drugcentral", HOSTILE[5]):
            expected = [sources for sources in everything if source in json.loads(sources)]
            assert window.run(shown, source) == expected
            assert expected
        assert window.run(shown, "") == everything
        # What unfolds below a row is not saved with its names.
        saved = window.run("return pathsOf(document.querySelector('article')).map((one) => one.path).join()")
        assert "evidence" not in saved
        assert "known reason" not in saved
        assert len(window.run("return influencesOf(document.querySelector('article'))")) == 11
        assert [entry for entry in window.console() if entry["level"] == "SEVERE"] == []
        assert all(address.startswith(("file:", "data:")) for address in window.requested_addresses())


# ---------------------------------------------------------------------------------------------------------------
# What fits nothing


@pytest.mark.parametrize("command", [ONE, COMMANDS["run"]])
@pytest.mark.parametrize(
    ("flag", "content", "message"),
    [
        ("--evidence", None, "given.tsv: none of the training triples stands in it, so it is of another graph; give"),
        ("--evidence", "head\trelation\n", "given.tsv:1: the columns are not head, relation, tail and"),
        ("--evidence", "", "given.tsv: is empty; give the evidence.tsv.gz"),
        ("--reasons", '{"triple": ["a", "b"]}\n', "given.tsv:1: is no {"),
        (
            "--reasons",
            '{"triple": ["x", "treats", "aspirin"], "reasons": []}\n',
            "given.tsv:1: 'x treats aspirin' has a label that",
        ),
        ("--reasons", json.dumps(REASONS[2]) + "\n", "given.tsv: none of its reasons is in the training triples; give"),
    ],
)
def test_files_of_another_graph_are_refused(project, command, flag, content, message):
    if content is None:
        write_evidence("given.tsv", EDGES[-1:])
    else:
        write("given.tsv", content)
    assert message in assert_refused(run(*command, flag, "given.tsv"))
    assert not Path("out").exists()


def test_evidence_of_none_that_is_listed_is_a_remark(project):
    write_evidence("evidence.tsv.gz", EDGES[3:])
    done = run(*ONE, "--top-k", "1", "--paths", "0", "--evidence", "evidence.tsv.gz")
    assert done.code == 0, done
    listed = json.loads(Path("out/one.json").read_text(encoding="utf-8"))["influences"]
    assert [row["evidence"] for row in listed] == [[]]
    assert "evidence.tsv.gz: tells nothing of the 2 training triples that are shown" in done.err


def test_unknown_predictions_are_dropped_if_asked_for(explained):
    unknown = {"triple": ["x", "treats", "aspirin"], "reasons": []}
    write("reasons.jsonl", json.dumps(unknown) + "\n" + json.dumps(REASONS[0]))
    done = run(*ONE, *SHOWN, "--skip-unknown")
    assert done.code == 0, done
    assert "reasons.jsonl: 1 of 2 predictions have labels that the mappings lack; they were dropped" in done.err


@pytest.mark.parametrize("flag", ["--evidence", "--reasons"])
def test_they_have_no_effect_on_self_influence(explained, flag):
    done = run(*COMMANDS["run self"], flag, "evidence.tsv.gz")
    assert done.code == 0, done
    assert f"{flag} has no effect with --mode self" in done.err


def test_a_run_goes_on_after_other_evidence_and_starts_afresh_after_other_reasons(explained):
    from conve_tracin.explanation.read import read
    from conve_tracin.explanation.scripts import RUN_TRACIN
    from conve_tracin.explanation.trace import digest_of_run
    from conve_tracin.settings import TracInOptions

    def digest(**changed):
        options = TracInOptions(
            model_path="model.pt", train="train.tsv", output="o", test_triples="asked.txt", device="cpu",
            entity_to_id="entity_to_id.tsv", relation_to_id="relation_to_id.tsv", **changed,
        )  # fmt: skip
        return digest_of_run(read(options, RUN_TRACIN, []))

    write("other.jsonl", json.dumps(REASONS[0] | {"explanations": REASONS[0]["explanations"][:1]}))
    write("same.jsonl", Path("reasons.jsonl").read_text(encoding="utf-8"))
    plain, with_reasons = digest(), digest(reasons="reasons.jsonl")
    assert digest(evidence="evidence.tsv.gz") == plain
    assert digest(reasons="same.jsonl", evidence="evidence.tsv.gz") == with_reasons
    assert len({plain, with_reasons, digest(reasons="other.jsonl")}) == 3

"""The report: its numbers against the traces, names as text and nothing else, and the page in a real browser."""

import base64
import hashlib
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import window  # noqa: F401 - a fixture
from conftest import RELATIONS, TRAIN, TREATS, make_small_conve
from page_content import Page

import conve_tracin
import run_tracin
import tracin_pytorch
from conve_tracin.data.graph import Graph
from conve_tracin.data.names import Names
from conve_tracin.data.vocabulary import Vocabulary
from conve_tracin.errors import InputError
from conve_tracin.explanation import explain
from conve_tracin.influence import trace as trace_module
from conve_tracin.influence.analyzers import TracInAnalyzerPyTorch
from conve_tracin.influence.method import Influence
from conve_tracin.influence.paths import GraphPath, Hop, PathFinder
from conve_tracin.influence.summary import SummarySettings, summarise
from conve_tracin.influence.trace import TracedCheckpoint, trace, with_counts
from conve_tracin.report.lettering import signed
from conve_tracin.report.page import describe_computation, report_page, settings_of, write_report
from conve_tracin.report.path_graph import ACROSS, DOWN
from conve_tracin.settings import TracInOptions

HOSTILE = (
    "<script>alert(1)</script>", '"><img src=x onerror="alert(2)">', "</style><b>bold</b>", "' onclick='alert(3)",
    "<!-- & ]]> &lt;i&gt; -->", "javascript:alert(4)//http://example.org/x.js",
)  # fmt: skip
HARMLESS = ("aspirin", "ibuprofen", "head ache", "fièvre", "MONDO:0005148", "PTGS2")
# What is hard to set: long words, capitals, broad letters.
SHOWN = (*HOSTILE[:2], "5-[[4-[2-(methyl)ethoxy]phenyl]methyl]-1,3-thiazolidine-2,4-dione", HOSTILE[3],
         "CHEMBL.COMPOUND:CHEMBL1431", "WWWWW MMMMMMMMM WWWWWWWWWWWWWW")  # fmt: skip


def make_names(entities=HARMLESS, relations=RELATIONS):
    return Names(Vocabulary("entity", entities), Vocabulary("relation", relations))


def make_traces(*test_triples, top_k=4):
    analyzer = TracInAnalyzerPyTorch(make_small_conve())
    return list(
        trace(
            lambda _: TracedCheckpoint(analyzer.scorer, analyzer.method, 0.01),
            [Path("model.pt")], np.array(test_triples), TRAIN,
            top_k=top_k, progress=False, summarised=True,
            describe=SummarySettings(graph=Graph(TRAIN, 6, 3)),
            find_paths=PathFinder(Graph(TRAIN, 6), limit=20, max_hops=3),
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def traces():
    return make_traces((1, TREATS, 4), (5, 2, 3), (3, 1, 3))


def table_of(text, class_):
    """The first table of a class on a page."""
    return Page(re.search(rf'<table class="{class_}.*?</table>', text, re.DOTALL)[0])


def influences_on(page):
    """All influences of the lists on a page, those in groups included."""
    cells = [a for a in page.attributes("td") if a.get("class") == "influence"]
    return {float(a["data-value"]) for a in cells + page.attributes("li") if "data-value" in a}


def strong(influences):
    """Those of a JSON output that a page lists: not below a hundredth of the strongest."""
    values = {one["influence"] for one in influences}
    return {value for value in values if value and abs(value) >= max(map(abs, values)) / 100}


def listed_of(traced):
    """The influences that a page lists, as none of these are alike enough to be grouped."""
    found = [*traced.proponents, *traced.opponents]
    least = max(abs(one.influence) for one in found) / 100
    return [one for one in found if abs(one.influence) >= least]


def facts_of(page):
    """The big numbers of the first prediction by their titles."""
    return dict(zip(page.texts("dt"), page.texts("b"), strict=False))


# ---------------------------------------------------------------------------------------------------------------
# Content


def test_the_table_lists_proponents_and_opponents_with_their_influence(traces):
    names = make_names()
    page = table_of(report_page(traces[:1], names, {}), "influences")
    expected = listed_of(traces[0])
    assert f"Left out: {8 - len(expected)} weaker ones, below a hundredth" in page.texts("caption")[0]
    values = [attributes["data-value"] for attributes in page.attributes("td") if "data-value" in attributes]
    assert [float(value) for value in values[1::2]] == [influence.influence for influence in expected]
    rows = [text for text in page.texts("tr") if any(text.startswith(f"{n}") for n in range(1, len(expected) + 1))]
    for row, influence in zip(rows, expected, strict=False):
        assert "".join(names.triple(influence.head, influence.relation, influence.tail).values()) in row


def test_rank_score_and_counts(traces):
    prediction, summary = traces[0].prediction, traces[0].summary
    page = Page(report_page(traces[:1], make_names(), {}))
    facts = facts_of(page)
    assert [facts[title] for title in ("Rank among all", "Score", "Speaks for it", "Speaks against it")] == [
        f"{prediction.rank:.0f}", f"{prediction.score:.2f}".replace("-", "−"),
        str(summary.num_positive), str(summary.num_negative),
    ]  # fmt: skip
    assert facts["Rank among its kind"] == f"{prediction.standing.among_answers.rank:g}"
    assert facts["Half of all influence"] == str(summary.concentration.half)
    assert f"of {prediction.num_candidates} possible tails" in page.texts("dl")[0]
    assert page.texts("h1") == ["ibuprofen treats→ MONDO:0005148"]


def test_a_repeated_training_triple_stands_once_with_its_count(traces):
    counts = np.ones(len(TRAIN), dtype=np.int64)
    strongest, *others = traces[0].proponents
    counts[strongest.position] = 5
    counted = with_counts(traces[0], counts)
    page = Page(report_page([counted], make_names(), {}))
    assert [text for text in page.texts("small") if "times" in text] == ["(5 times in the training file)"]
    assert [one.count for one in counted.proponents] == [5] + [1] * len(others)


def test_control_characters_are_written_out(traces):
    names = make_names(entities=("a\x1b[2J", "b\u202ec", *HARMLESS[2:]))
    text = report_page(make_traces((0, 0, 1)), names, {"Device": "cpu\x07"})
    assert not set(text) & {"\x1b", "\u202e", "\x07"}
    assert "\\x1b" in text
    assert "\\u202e" in text
    assert "cpu\\x07" in text


def test_paths_are_listed_in_order(traces):
    names = make_names()
    traced = traces[0]
    assert traced.paths
    listed = Page(report_page([traced], names, {})).texts("td", "path")
    for text, path in zip(listed, traced.paths, strict=True):
        hops = [f"{names.relation(hop.influence.relation)} {signed(hop.influence.influence)}" for hop in path.hops]
        arrows = [f"— {r} →" if hop.forward else f"← {r} —" for r, hop in zip(hops, path.hops, strict=True)]
        parts = [part for step in zip(map(names.entity, path.entities), [*arrows, ""], strict=True) for part in step]
        assert text == " ".join(filter(None, parts))


def test_relations_have_the_sums_of_the_summary(traces):
    text = report_page(traces[:1], make_names(), {})
    table = Page(re.search(r'<table class="relations">.*?</table>', text, re.DOTALL)[0])
    by_relation = traces[0].summary.by_relation
    assert table.texts("th")[5:] == [RELATIONS[entry.relation] for entry in by_relation]
    numbers = [float(text.replace("−", "-").split("·")[0]) for text in table.texts("td", "number")]
    counts, against, in_favour = numbers[::3], numbers[1::3], numbers[2::3]
    assert counts == [entry.triples for entry in by_relation]
    np.testing.assert_allclose(against, [entry.negative for entry in by_relation], rtol=0, atol=5.1e-4)
    np.testing.assert_allclose(in_favour, [entry.positive for entry in by_relation], rtol=0, atol=5.1e-4)


def test_no_path_is_explained():
    page = report_page(make_traces((3, 1, 3)), make_names(), {})
    assert "Start and end are the same entity" in page
    assert 'class="paths"' not in page


def test_the_best_answers_are_listed_with_what_is_known_of_them(traces):
    names, model = make_names(), make_small_conve()
    page = Page(report_page(traces[:1], names, {}))
    scores = model.score(torch.full((6,), 1), torch.full((6,), TREATS), torch.arange(6)).tolist()
    known = {tail for head, relation, tail in TRAIN.tolist() if (head, relation) == (1, TREATS)}
    expected = [
        names.entity(entity)
        + " this prediction" * (entity == 4) + " known" * (entity in known)
        + f"{scores[entity]:.2f}".replace("-", "−")
        for entity in sorted(range(6), key=lambda entity: -scores[entity])
    ]  # fmt: skip
    assert page.texts("section", "answers")[0].startswith("The model's 6 best answers" + "".join(expected))


def test_a_prediction_without_any_influence(traces):
    scores = torch.zeros(len(TRAIN))
    nothing = trace_module.make_trace(np.array([1, TREATS, 4]), scores, TRAIN, top_k=5)
    nothing = replace(nothing, summary=summarise(scores, Graph(TRAIN, 6, 3)), prediction=traces[0].prediction)
    page = Page(report_page([nothing], make_names(), {}))
    assert "No training triple has any influence." in page.texts("article")[0]
    assert table_of(report_page([nothing], make_names(), {}), "influences").texts("tbody")[0] == ""


def test_several_predictions_have_an_index_with_anchors(traces):
    page = Page(report_page(traces, make_names(), {}))
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    links = [attributes["href"] for attributes in page.attributes("a")]
    assert [link for link in links if link != "#index"] == ["#prediction-1", "#prediction-2", "#prediction-3"]
    assert {link[1:] for link in links} <= ids
    assert len(ids) == len([1 for _, attributes in page.elements if "id" in attributes])
    assert "Rank" in page.texts("nav")[0]
    assert len(page.texts("article")) == 3


def test_relations_are_words_and_their_identifiers_stay(traces):
    names = make_names(relations=("biolink:gene_associated_with_condition", "predicate:1", "associated with"))
    named = Names(names.entities, names.relations, {}, {"predicate:1": "biolink:affects (causes, activity)"})
    text = report_page(traces[:1], named, {})
    page = Page(text)
    assert page.texts("h1") == ["ibuprofen gene associated with condition→ MONDO:0005148"]
    assert "biolink:gene_associated_with_condition" in page.texts("p", "identifiers")[0]
    rows = Page("".join(re.findall(r"<table.*?</table>", text, re.DOTALL)))
    called = {attributes.get("title") for attributes in rows.attributes("bdi")}
    shown = set(rows.texts("bdi"))
    assert {"gene associated with condition", "affects (causes, activity)"} <= shown
    assert not [name for name in shown if "biolink" in name]
    assert {"biolink:gene_associated_with_condition", "biolink:affects (causes, activity) · predicate:1"} <= called


@pytest.mark.parametrize("name", [*HOSTILE, *SHOWN, "a" * 80, "1.25 mg, 3.5", "", " two  blanks "])
def test_breaks_leave_a_name_as_it_is(name, traces):
    names = make_names((name or "?", *HARMLESS[1:]))
    named = Names(names.entities, names.relations, {4: name}, {})
    page = Page(report_page(traces[:1], named, {}))
    assert (name or "MONDO:0005148") in page.texts("h1")[0]


def test_numbers_stay_in_one_piece(traces):
    page = report_page(traces[:1], make_names(), {"Versions": "torch 2.13.0"})
    assert "torch 2.13.0" in page


def test_the_page_says_how_many_paths_are_drawn(traces):
    few = replace(traces[0], paths=traces[0].paths[:1])
    assert "Drawn:" not in report_page([few], make_names(), {})
    # 1 → n → 4 over ten entities between them.
    steps = [[Influence(1, TREATS, n, 1.0, n), Influence(n, TREATS, 4, -1.0, n)] for n in range(5, 15)]
    paths = [GraphPath((1, one.tail, 4), (Hop(one, True, 0), Hop(two, True, 0)), 0.5) for one, two in steps]
    page = Page(report_page([replace(traces[0], paths=paths)], make_names(tuple(map(str, range(15)))), {}))
    for class_, lanes in (("across", ACROSS.max_lanes), ("down", DOWN.max_lanes)):
        assert f"Drawn: the first {lanes} of the 10 listed." in page.texts("div", class_)[0]


def test_a_single_prediction_has_no_index(traces):
    page = Page(report_page(traces[:1], make_names(), {}))
    assert page.attributes("nav") == []
    assert page.attributes("a") == []
    assert len(page.texts("h1")) == 1


@pytest.mark.parametrize(("method", "in_words"), [("tracin", "loss gradients"), ("gauss-newton", "Gauss–Newton")])
def test_how_it_was_computed(method, in_words, tmp_path):
    checkpoint = tmp_path / "model.pt"
    checkpoint.write_bytes(os.urandom(3_000_000))
    computation = describe_computation(
        method=method, checkpoints={checkpoint: 0.0375}, train=tmp_path / "train.txt", settings={"Damping": 0.5}
    )
    page = Page(report_page(make_traces((1, TREATS, 4)), make_names(), computation))
    (text,) = page.texts("footer")
    for part in (
        hashlib.sha256(checkpoint.read_bytes()).hexdigest(), str(checkpoint), in_words, "Damping0.5",
        f"conve-tracin {conve_tracin.__version__}", f"torch {torch.__version__}",
    ):  # fmt: skip
        assert part in text
    assert ("0.0375" in text) == (method == "tracin")


def test_settings_are_those_that_have_an_effect():
    shared = {"model_path": "model.pt", "train": "train.txt", "output": "out.json", "mode": "self", "device": "cpu"}
    shared |= {"use_last_layers_only": True, "num_last_layers": 4}
    tracin = settings_of(TracInOptions(**shared))
    assert tracin["Tracked parameters"] == "the last 4 before the scoring layer"
    assert tracin["Engine"] == "backward loop"
    assert "Damping" not in tracin
    named = settings_of(TracInOptions(**shared, last_layer_names=["fc.bias"], use_optimized_tracin=True))
    assert (named["Tracked parameters"], named["Engine"]) == ("fc.bias", "forward")
    damped = settings_of(TracInOptions(**shared, method="gauss-newton", damping=0.5))
    assert damped["Damping"].startswith("0.5 ×")
    assert not damped.keys() & {"Tracked parameters", "Engine"}
    rounded = shared | {"use_mixed_precision": True}
    for settings, products in (
        ({"use_optimized_tracin": True}, "bfloat16"),
        ({"use_optimized_tracin": True, "training_loss": True}, "full precision"),
        ({}, "full precision"),
        ({"use_optimized_tracin": True, "method": "gauss-newton"}, "full precision"),
    ):
        assert settings_of(TracInOptions(**rounded | settings))["Matrix products"] == products


# ---------------------------------------------------------------------------------------------------------------
# Nothing but the page


@pytest.mark.parametrize("turn", range(6))
def test_hostile_names_stay_text(turn, traces):
    entities = HOSTILE[turn:] + HOSTILE[:turn]
    relations = tuple(f"{label}{n}" for n, label in enumerate(HOSTILE[turn:][:3] + HOSTILE[: max(0, turn - 3)]))
    names = make_names(entities, relations)
    named = Names(names.entities, names.relations, dict(enumerate(reversed(entities))), {relations[0]: HOSTILE[0]})
    harmless = Page(report_page(traces, make_names(), {"Checkpoint": "model.pt"}))
    for hostile_names in (names, named):
        page = Page(report_page(traces, hostile_names, {HOSTILE[0]: HOSTILE[1]}))
        kinds = {name for name, _ in page.elements}
        assert kinds <= {name for name, _ in harmless.elements} | {"wbr", "span"}
        assert len(page.attributes("script")) == 1
        assert "alert(" not in page.texts("script")[0]
        assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
        whole = page.texts("html")[0]
        for label in entities:
            assert label in whole


def test_the_page_loads_nothing(traces):
    text = report_page(traces, make_names(HOSTILE), {})
    page = Page(text)
    for _, attributes in page.elements:
        assert not attributes.keys() & {"src", "srcset", "action", "data", "poster", "background", "xlink:href"}
        assert attributes.get("href", "#").startswith(("#", "data:,"))
    style = page.texts("style")[0]
    assert "url(" not in style
    assert "@import" not in style


def test_the_policy_allows_the_pages_own_script_alone(traces):
    page = Page(report_page(traces, make_names(), {}))
    (policy,) = [a["content"] for a in page.attributes("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(page.texts("script")[0].encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy


# ---------------------------------------------------------------------------------------------------------------
# Through the command line


@pytest.fixture
def command(graph_files, tmp_path):
    model = make_small_conve().float()
    path = tmp_path / "model.pt"
    torch.save({"model_state_dict": model.state_dict(), "model_config": model.config.as_dict(), "epoch": 1}, path)
    return [
        "--model-path", str(path), "--train", str(graph_files.train), "--entity-to-id", str(graph_files.entity_to_id),
        "--relation-to-id", str(graph_files.relation_to_id), "--report", str(tmp_path / "report.html"),
    ]  # fmt: skip


def test_report_of_one_triple(command, tmp_path):
    tracin_pytorch.main(
        [*command, "--test-triple", "ibuprofen", "treats", "MONDO:0005148", "--output", str(tmp_path / "out.json")]
    )
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    influences = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["influences"]
    shown = influences_on(page)
    assert strong(influences) <= shown
    assert hashlib.sha256((tmp_path / "model.pt").read_bytes()).hexdigest() in page.texts("footer")[0]


def test_report_of_many_triples(command, graph_files, tmp_path):
    tracin_pytorch.main([*command, "--test-triples", str(graph_files.test), "--output-dir", str(tmp_path / "many")])
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert len(page.texts("article")) == 3
    assert "PTGS2 — associated with → MONDO:0005148" in page.texts("nav")[0]


@pytest.mark.parametrize("more", [["--use-optimized-tracin"], [], ["--method", "gauss-newton"]])
def test_report_of_run_tracin(command, graph_files, tmp_path, more):
    run_tracin.main([*command, "--test", str(graph_files.test), "--output", str(tmp_path / "all.json"), *more])
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    results = json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))["results"]
    shown = influences_on(page)
    assert set().union(*(strong(result["influences"]) for result in results)) <= shown
    assert len(page.texts("article")) == len(results) == 3


def test_report_of_a_resumed_run_is_that_of_an_undisturbed_one(command, graph_files, tmp_path, monkeypatch):
    monkeypatch.setattr(trace_module, "GROUP_SIZE", 1)
    arguments = [*command, "--test", str(graph_files.test), "--output", str(tmp_path / "all.json")]
    run_tracin.main(arguments)
    expected = (tmp_path / "report.html").read_text(encoding="utf-8")
    (tmp_path / "report.html").unlink()
    monkeypatch.setattr(explain, "write_results", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_tracin.main(arguments)
    monkeypatch.undo()
    monkeypatch.setattr(trace_module, "GROUP_SIZE", 1)
    monkeypatch.setattr(trace_module, "summarise", lambda *_: 1 / 0)
    run_tracin.main(arguments)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == expected


def test_known_triples_are_passed_over_by_the_rank(command, graph_files, tmp_path):
    """The tails of VALID and TEST count as known; the score of (5, 2, 3) decides between two ranks."""
    model = make_small_conve()
    arguments = ["--test-triple", "PTGS2", "associated with", "MONDO:0005148", "--output", str(tmp_path / "out.json")]

    def rank_on_page(*more):
        tracin_pytorch.main([*command, *arguments, *more])
        page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
        return float(facts_of(page)["Rank among all"]), int(
            re.search(r"of (\d+) possible tails", page.texts("dl")[0])[1]
        )

    scores = model.score(torch.full((6,), 5), torch.full((6,), 2), torch.arange(6))
    for more, known in ((), {2}), (("--known", str(graph_files.valid), str(graph_files.test)), {2, 3}):
        higher = sum(scores[tail] > scores[4] for tail in range(6) if tail not in known)
        assert rank_on_page(*more) == (1 + higher, 6 - len(known))


@pytest.mark.parametrize("script", [tracin_pytorch, run_tracin])
def test_a_directory_is_no_report(command, script, tmp_path, capsys):
    with pytest.raises(SystemExit):
        script.main([*command, "--report", str(tmp_path)])
    assert "is a directory" in capsys.readouterr().err


def test_the_report_does_not_replace_another_output(command, graph_files, tmp_path):
    arguments = [*command, "--test", str(graph_files.test), "--output", str(tmp_path / "report.html")]
    with pytest.raises(InputError, match=r"report\.html: --output and --report"):
        run_tracin.main(arguments)


# ---------------------------------------------------------------------------------------------------------------
# In a browser


@pytest.fixture
def shown(window, traces, tmp_path):
    """A page of three predictions with hostile names, open in a wide window."""
    path = tmp_path / "report.html"
    write_report(path, traces, make_names(SHOWN), {"Checkpoint": "model.pt"})
    window.console()
    window.requested_addresses()
    window.show(width=1280)
    window.open(path)
    return window


def column(window, number):
    """The cells of a column of the first table of influences, as far as its rows are shown."""
    return window.run(
        "return [...document.querySelector('table.influences').tBodies[0].rows].filter(row => row.offsetHeight)"
        f".map(row => row.cells[{number}].dataset.value ?? row.cells[{number}].textContent)"
    )


def click(window, number):
    window.run(f"document.querySelector('table.influences').querySelectorAll('th button')[{number}].click()")


def test_nothing_runs_fails_or_leaves_the_page(shown):
    assert shown.console() == []
    addresses = shown.requested_addresses()
    assert addresses
    assert {address.partition(":")[0] for address in addresses} <= {"file", "data"}
    assert len([address for address in addresses if address.startswith("file:")]) == 1
    assert shown.run("return document.querySelectorAll('img, b:not(dd b), [onclick], [onerror]').length") == 0
    assert HOSTILE[0] in shown.run("return document.body.innerText")


def test_columns_sort_both_ways(shown):
    influences = [float(value) for value in column(shown, 4)]
    click(shown, 4)
    assert [float(value) for value in column(shown, 4)] == sorted(influences, reverse=True)
    click(shown, 4)
    assert [float(value) for value in column(shown, 4)] == sorted(influences)
    assert shown.run("return document.querySelector('th.influence').ariaSort") == "ascending"
    click(shown, 1)
    heads = column(shown, 1)
    assert heads == shown.run(
        "return arguments[0].sort((a, b) => a.localeCompare(b, undefined, {numeric: true}))", heads
    )
    click(shown, 0)
    assert [float(value) for value in column(shown, 4)] == influences


def test_search_filters_rows(shown, traces):
    influences = listed_of(traces[0])
    relation = influences[0].relation
    expected = sum(influence.relation == relation for influence in influences)
    assert 0 < expected < len(influences)
    script = (
        "const controls = document.querySelector('table.influences').previousElementSibling;"
        "const input = controls.querySelector('input'); input.value = arguments[0];"
        "input.dispatchEvent(new Event('input')); return controls.querySelector('.count').textContent"
    )
    assert shown.run(script, RELATIONS[relation].upper()) == f"{expected} of {len(influences)} shown"
    assert column(shown, 2) == [RELATIONS[relation]] * expected
    assert shown.run(script, "no such name") == f"0 of {len(influences)} shown"
    assert column(shown, 2) == []
    assert shown.run(script, "") == ""
    assert len(column(shown, 2)) == len(influences)


@pytest.mark.parametrize(("width", "graph"), [(1280, "across"), (390, "down")])
@pytest.mark.parametrize("dark", [False, True])
def test_the_graph_is_drawn_and_the_page_fits_its_window(shown, width, graph, dark):
    shown.show(width=width, dark=dark)
    visible = shown.run(
        "return [...document.querySelectorAll('.graph')].filter(each => each.offsetHeight).map(each => each.className)"
    )
    assert set(visible) == {f"graph {graph}"}
    boxes = shown.run(
        f"return [...document.querySelectorAll('.graph.{graph} rect')].map(each => each.getBoundingClientRect())"
        ".map(box => [box.left, box.right, box.height])"
    )
    assert len(boxes) > 2
    assert all(0 <= left < right <= width and height > 0 for left, right, height in boxes)
    assert shown.run("return document.documentElement.scrollWidth") <= width
    colours = shown.run(
        "const style = getComputedStyle(document.documentElement); return [style.backgroundColor, style.color]"
    )
    paper, ink = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours)
    assert paper < 150 < 600 < ink if dark else ink < 150 < 600 < paper


@pytest.mark.parametrize(("width", "graph"), [(1280, "across"), (390, "down")])
def test_names_fit_their_boxes(shown, width, graph):
    shown.show(width=width)
    overflowing = shown.run(
        f"return [...document.querySelectorAll('.graph.{graph} .node, .graph.{graph} .end')].filter(group => {{"
        "  const box = group.querySelector('rect').getBBox(), text = group.querySelector('text').getBBox();"
        "  return text.x < box.x + 2 || text.x + text.width > box.x + box.width - 2; }).map(each => each.textContent)"
    )
    assert overflowing == []


def test_on_paper_the_page_is_light_and_without_controls(shown):
    shown.show(width=700, dark=True, media="print")
    assert shown.run("return document.querySelector('.search').offsetHeight") == 0
    assert shown.run("return getComputedStyle(document.documentElement).backgroundColor") == "rgb(255, 255, 255)"
    assert shown.run("return document.querySelector('.graph.across').offsetHeight") > 0


def test_a_zero_is_explained_and_has_neither_colour(traces):
    page = report_page(traces[:1], make_names(tuple(map(str, range(15)))), {})
    assert "A 0 is no verdict" not in page
    path = traces[0].paths[0]
    hops = (replace(path.hops[0], influence=replace(path.hops[0].influence, influence=0.0)), *path.hops[1:])
    page = report_page(
        [replace(traces[0], paths=[replace(path, hops=hops)])], make_names(tuple(map(str, range(15)))), {}
    )
    assert "A 0 is no verdict" in page
    assert '<span class="number none">0</span>' in page

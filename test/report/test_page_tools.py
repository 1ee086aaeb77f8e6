"""What a page offers: groups, filters, colours, warnings, downloads and an index that sorts, in a real browser."""

import csv
import json
import re
import time
from dataclasses import replace

import numpy as np
import pytest
from browser import window  # noqa: F401 - a fixture
from page_content import Page

from conve_tracin.data.kgx.categories import Categories
from conve_tracin.data.names import Names
from conve_tracin.data.vocabulary import Vocabulary
from conve_tracin.influence.method import Influence
from conve_tracin.influence.paths import GraphPath, Hop
from conve_tracin.influence.provenance import Provenance
from conve_tracin.influence.standing import Answer, OtherQuestions, Peers, Standing
from conve_tracin.influence.summary import Concentration, InfluenceSummary, Place, Prediction, RelationInfluence
from conve_tracin.influence.trace import Trace
from conve_tracin.report.groups import GROUPED_FROM, group_influences
from conve_tracin.report.page import Background, report_page, write_report

NUM_DRUGS, NUM_GENES, NUM_DISEASES = 30, 30, 10
DRUGS = [f'drug {n} <b>"x"' for n in range(NUM_DRUGS)]
ENTITIES = DRUGS + [f"GENE{n}" for n in range(NUM_GENES)] + [f"disease number {n}" for n in range(NUM_DISEASES)]
GENE, DISEASE = NUM_DRUGS, NUM_DRUGS + NUM_GENES
TREATS, BINDS, CAUSES = range(3)
CATEGORIES = Categories(
    ("SmallMolecule", "Gene", "Disease"), np.repeat([0, 1, 2], [NUM_DRUGS, NUM_GENES, NUM_DISEASES])
)


@pytest.fixture(scope="module")
def names():
    labels = tuple(f"X:{n:06d}" for n in range(len(ENTITIES)))
    relations = ("predicate:0", "=binds", "biolink:causes")
    return Names(
        Vocabulary("entity", labels), Vocabulary("relation", relations), dict(enumerate(ENTITIES)),
        {"predicate:0": "biolink:treats"},
    )  # fmt: skip


def make_influences():
    """Eight drugs that treat a disease, five genes that a drug binds, and single ones; below a hundredth three."""
    treating = [Influence(n, TREATS, DISEASE, 0.9 - n / 100, n) for n in range(1, 9)]
    bound = [Influence(0, BINDS, GENE + n, 0.5 - n / 100, 20 + n) for n in range(5)]
    single = [Influence(9, CAUSES, DISEASE + 2, 0.33, 40), Influence(GENE, CAUSES, DISEASE, 0.01, 41)]
    weak = [Influence(n, BINDS, GENE + n, 0.0088, 50 + n) for n in range(20, 23)]
    against = [Influence(11, CAUSES, DISEASE, -0.7, 60), Influence(12, TREATS, DISEASE + 3, -0.2, 61)]
    return treating + bound + single + weak, against


def make_trace(head=0, tail=DISEASE, *, rank=1.0, among_first=60, asked=100, num_models=1):
    proponents, opponents = make_influences()
    if num_models > 1:
        proponents, opponents = (
            [replace(one, models=1 + one.position % num_models) for one in side] for side in (proponents, opponents)
        )
    standing = Standing(
        Peers(rank, 8), Peers(rank, 10, "Disease"),
        (Answer(DISEASE + 1, 4.0, True), Answer(tail, 3.0, False)), OtherQuestions(300, asked, among_first),
    )  # fmt: skip
    head_place = Place(1.5, rank * 10, 60, 1, replace(standing, in_category=Peers(rank * 10, 30, "SmallMolecule")))
    paths = []
    for n in range(12):
        to, last = (
            Influence(head, BINDS, GENE + n, 0.3, 70 + n),
            Influence(tail, CAUSES, GENE + n, 0.01 * n - 0.04, 90 + n),
        )
        if n % 3 == 2:
            last = Influence(GENE + n, TREATS, tail, 0.2, 90 + n)
        paths.append(GraphPath((head, GENE + n, tail), (Hop(to, True, 0), Hop(last, n % 3 == 2, 0)), 1 / (n + 1)))
    summary = InfluenceSummary(
        200, 120, 80, 9.0, -1.0, [RelationInfluence(TREATS, 9.0, -1.0, 200)],
        Concentration((1, 10, 100, 200), (0.1, 0.6, 0.9, 1.0), 8),
    )  # fmt: skip
    return Trace(
        (head, TREATS, tail), sorted(proponents + opponents, key=lambda one: -abs(one.influence)), proponents,
        opponents, summary, Prediction(3.0, rank, 69, 1, standing, False, head_place), paths, num_models, 10.0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def background(tmp_path_factory):
    model = Provenance(
        tmp_path_factory.mktemp("model") / "m.pt",
        7,
        {},
        {"mean_reciprocal_rank": 0.25, "hits@10": 0.5},
        "test",
        "tails",
    )
    return Background(categories=CATEGORIES, warnings=["Mind <this>."], model=model, measured=["It was examined."])


# ---------------------------------------------------------------------------------------------------------------
# What is said


def test_groups_hold_each_influence_once_in_the_larger_group_that_it_fits():
    proponents, _ = make_influences()
    groups = group_influences(proponents)
    assert sorted(one.position for group in groups for one in group.influences) == sorted(
        one.position for one in proponents
    )
    assert [(len(group.influences), group.many) for group in groups[:2]] == [(8, "head"), (5, "tail")]
    assert groups[0].sum == pytest.approx(sum(one.influence for one in proponents[:8]))
    assert all(len(group.influences) == 1 for group in groups[2:])
    assert [abs(group.sum) for group in groups] == sorted((abs(group.sum) for group in groups), reverse=True)
    few = group_influences(proponents[: GROUPED_FROM - 1])
    assert [group.many for group in few] == [None] * (GROUPED_FROM - 1)


def test_what_the_larger_group_takes_leaves_no_group_below_the_least_size():
    # Four (0, BINDS, ·) of which three are in the larger group of heads that bind one gene.
    shared = [Influence(n, BINDS, GENE, 0.5, n) for n in range(6)]
    rest = [Influence(0, BINDS, GENE + n, 0.4, 10 + n) for n in range(1, 4)]
    assert [(len(group.influences), group.many) for group in group_influences(shared + rest)] == [
        (6, "head"), (1, None), (1, None), (1, None),
    ]  # fmt: skip


def test_a_group_is_a_row_with_its_count_sum_share_and_kind(names, background):
    page = Page(report_page([make_trace()], names, {}, background))
    assert page.texts("summary") == ["8 small molecules", "5 genes"]
    text = report_page([make_trace()], names, {}, background)
    rows = re.findall(r'<tr class="group".*?</tr>', text, re.DOTALL)
    assert "+6.84" in rows[0]
    assert "68 %" in rows[0]
    assert [float(found) for found in re.findall(r'<li data-value="(.*?)"', rows[1])] == [0.5, 0.49, 0.48, 0.47, 0.46]
    without = Page(report_page([make_trace()], names, {}))
    assert without.texts("summary") == ["8 entities", "5 entities"]


def test_below_a_hundredth_of_the_strongest_nothing_is_listed(names):
    text = report_page([make_trace()], names, {})
    assert "15 proponents" in text
    assert "Left out: 3 weaker ones, below a hundredth of the strongest" in text
    assert "0.0088" not in text
    assert "0.01" in text


def test_what_a_rank_says_is_said(names, background):
    often = Page(report_page([make_trace()], names, {}, background)).texts("article")[0]
    assert "Rank among its kind1of 10 diseases" in often
    assert "Rank from the other side10of 30 small molecules" in often
    assert "Given to others, too60 %of 100 other heads" in often
    assert "The model gives this answer to most." in often
    assert "(a sample of all 300)" in often
    assert "Half of all influence8strongest of 200 training triples" in often
    seldom = Page(report_page([make_trace(among_first=3)], names, {})).texts("article")[0]
    assert "rather than for all" in seldom
    assert "The model gives" not in seldom
    few = Page(report_page([make_trace(among_first=1, asked=2)], names, {})).texts("article")[0]
    assert "Given to others" not in few
    assert "too few other heads to tell" in few


def test_warnings_and_the_models_metrics_stand_on_the_page(names, background):
    page = Page(report_page([make_trace()], names, {}, background))
    assert page.texts("ul", "warnings") == ["Mind <this>."]
    trust = page.texts("section", "trust")[0]
    assert "On test triples (tails, filtered), after epoch 7" in " ".join(trust.split())
    assert ".250" in trust
    assert "50 % among the first ten" in trust
    assert "It was examined." in trust
    unseen = replace(make_trace(), prediction=replace(make_trace().prediction, untrained=("head",)))
    first = Page(report_page([unseen], names, {}, background)).texts("ul", "warnings")[0]
    assert first.startswith("No training triple has the head")
    assert 'id="trust"' not in report_page([make_trace()], names, {})


def test_categories_have_colours_and_a_legend(names, background):
    text = report_page([make_trace()], names, {}, background)
    legend = dict(re.findall(r'<li class="(kind-\d)">(.*?)</li>', text))
    kind_of = {words: class_ for class_, words in legend.items()}
    assert set(kind_of) == {"gene", "disease", "small molecule"}
    nodes = dict(re.findall(r'<g class="(?:node|end) (kind-\d)" data-entity="(\d+)"', text)[::-1])
    assert {kind_of["gene"], kind_of["disease"], kind_of["small molecule"]} == set(nodes)
    for class_, entity in re.findall(r'<g class="(?:node|end) (kind-\d)" data-entity="(\d+)"', text):
        assert {"SmallMolecule": "small molecule", "Gene": "gene", "Disease": "disease"}[
            CATEGORIES.name(int(entity))
        ] == legend[class_]
    assert 'class="legend"' not in report_page([make_trace()], names, {})


def test_models_that_agree_are_counted(names):
    text = report_page([make_trace(num_models=3)], names, {})
    assert "those of the last of the 3 checkpoints" in text
    assert "of the last of" not in report_page([make_trace()], names, {})
    agreed = sum(one.position % 3 == 2 for side in make_influences() for one in side)
    assert f"{agreed} of those listed are among the strongest of all 3" in text


def test_twenty_predictions_stay_below_two_megabytes(names, background):
    traces = []
    for n in range(20):
        singles = [Influence(n, k % 3, 31 + (7 * k + n) % 30, 0.9 - k / 200, k) for k in range(20)]
        singles = [replace(one, head=(n + 3 * place) % 30) for place, one in enumerate(singles)]
        against = [replace(one, influence=-one.influence) for one in singles]
        trace = make_trace(n, DISEASE + n % 10)
        paths = [path for path in trace.paths for _ in range(2)][:20]
        traces.append(replace(trace, proponents=singles, opponents=against, paths=paths))
    assert len(report_page(traces, names, {}, background).encode()) < 2_000_000


# ---------------------------------------------------------------------------------------------------------------
# In a browser


@pytest.fixture
def shown(window, names, background, tmp_path):
    """A page of three predictions, open in a wide window; downloads go to `tmp_path`."""
    traces = [make_trace(rank=2.0), make_trace(1, DISEASE + 1, rank=9.0, among_first=1), make_trace(2, DISEASE + 2)]
    write_report(tmp_path / "report.html", traces, names, {"Checkpoint": "model.pt"}, background)
    window.console()
    window.requested_addresses()
    window.devtools("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    window.show(width=1280)
    window.open(tmp_path / "report.html")
    yield window
    assert window.console() == []
    assert {address.partition(":")[0] for address in window.requested_addresses()} <= {"file", "data", "blob"}


def download(window, folder, name):
    window.run(
        "const [id, download, as] = arguments;"
        "document.querySelector(`#${id} [data-download=${download}][data-as=${as}]`).click()",
        *re.fullmatch(r"(prediction-\d)-(\w+)\.(\w+)", name).groups(),
    )
    for _ in range(100):
        if (folder / name).is_file():
            return (folder / name).read_text("utf-8")
        time.sleep(0.05)
    raise AssertionError(f"{name} was not saved: {sorted(folder.iterdir())}")


def test_the_downloaded_table_holds_the_listed_influences(shown, tmp_path, names):
    # Neither sorting, a filter nor what is folded changes it.
    shown.run("document.querySelector('#prediction-1 table.influences th.influence button').click()")
    shown.run(
        "const select = document.querySelector('#prediction-1 table.influences').previousElementSibling.querySelector"
        "('select'); select.value = '2'; select.dispatchEvent(new Event('change'))"
    )
    rows = list(csv.DictReader(download(shown, tmp_path, "prediction-1-influences.tsv").splitlines(), delimiter="\t",
                               quoting=csv.QUOTE_NONE))  # fmt: skip
    proponents, opponents = make_influences()
    listed = [one for one in proponents + opponents if abs(one.influence) >= 0.0089]
    assert sorted((row["head"], row["tail"], float(row["influence"])) for row in rows) == sorted(
        (names.entities.labels[one.head], names.entities.labels[one.tail], one.influence) for one in listed
    )
    assert {row["relation"] for row in rows} == {"predicate:0", "'=binds", "biolink:causes"}
    assert {row["relation_name"] for row in rows} == {"treats", "'=binds", "causes"}
    assert {row["head_name"] for row in rows} <= set(ENTITIES)


def test_the_downloaded_json_holds_prediction_paths_and_influences(shown, tmp_path, names):
    content = json.loads(download(shown, tmp_path, "prediction-2-all.json"))
    assert content["prediction"]["tail_key"] == names.entities.labels[DISEASE + 1]
    assert content["prediction"]["tail_standing"]["rank_in_category"] == 9
    assert content["prediction"]["warnings"] == ["Mind <this>."]
    path = make_trace(1, DISEASE + 1).paths[0]
    assert content["paths"][0]["triples"] == [
        {
            "head": names.entities.labels[hop.influence.head],
            "relation": names.relations.labels[hop.influence.relation],
            "tail": names.entities.labels[hop.influence.tail], "influence": pytest.approx(hop.influence.influence),
        }
        for hop in path.hops
    ]  # fmt: skip
    assert len(content["paths"]) == 12
    assert len(content["influences"]) == 17
    table = download(shown, tmp_path, "prediction-2-paths.tsv").splitlines()
    assert len(table) == 13
    assert names.entities.labels[GENE] in table[1]


def test_paths_are_filtered_by_predicate(shown):
    shown_rows = (
        "const table = document.querySelector('#prediction-1 table.path-table');"
        "const select = table.previousElementSibling.querySelector('select');"
        "select.value = arguments[0]; select.dispatchEvent(new Event('change'));"
        "return [...table.tBodies[0].rows].filter(row => row.offsetHeight)"
        ".map(row => Number(row.cells[0].dataset.value))"
    )
    assert shown.run(shown_rows, str(TREATS)) == [3, 6, 9, 12]
    assert shown.run(shown_rows, str(CAUSES)) == [1, 2, 4, 5, 7, 8, 10, 11]
    assert len(shown.run(shown_rows, "")) == 12
    options = shown.run(
        "return [...document.querySelector('#prediction-1 select').options].map(one => one.textContent)"
    )
    assert options == ["any", "=binds", "causes", "treats"]


def test_paths_sort_by_their_weakest_link(shown):
    shown.run("document.querySelector('#prediction-1 table.path-table th.weakest button').click()")
    values = shown.run(
        "return [...document.querySelector('#prediction-1 table.path-table').tBodies[0].rows]"
        ".map(row => Number(row.cells[2].dataset.value))"
    )
    assert values == sorted(values, reverse=True)


def test_groups_unfold_and_open_when_a_member_is_searched(shown):
    members = "[...document.querySelectorAll('#prediction-1 details')]"
    members += ".map(one => [one.open, one.querySelector('li').checkVisibility()])"
    assert shown.run(f"return {members}") == [[False, False]] * 2
    shown.run("document.querySelector('#prediction-1 details summary').click()")
    assert shown.run(f"return {members}") == [[True, True], [False, False]]
    search = (
        "const input = document.querySelector('#prediction-1 table.influences').previousElementSibling"
        ".querySelector('input'); input.value = arguments[0]; input.dispatchEvent(new Event('input'));"
        f"return {members}"
    )
    assert shown.run(search, "gene3") == [[False, False], [True, True]]
    assert shown.run(search, "") == [[False, False]] * 2


def test_the_index_sorts_by_either_rank_and_its_links_lead_to_the_predictions(shown):
    order = (
        "const table = document.querySelector('table.index');"
        "table.querySelectorAll('th button')[arguments[0]].click();"
        "return [...table.tBodies[0].rows].map(row => row.querySelector('a').hash)"
    )
    assert shown.run(order, 2) == ["#prediction-3", "#prediction-1", "#prediction-2"]
    assert shown.run(order, 2) == ["#prediction-2", "#prediction-1", "#prediction-3"]
    assert shown.run(order, 3) == ["#prediction-3", "#prediction-1", "#prediction-2"]
    assert shown.run(order, 4)[0] == "#prediction-2"
    links = shown.run("return [...document.links].map(one => one.getAttribute('href'))")
    targets = shown.run("return [...document.querySelectorAll('[id]')].map(one => '#' + one.id)")
    assert set(links) <= set(targets)


@pytest.mark.parametrize("width", [390, 1280])
def test_index_groups_and_buttons_fit_the_window(shown, width):
    shown.show(width=width)
    shown.run("document.querySelectorAll('details').forEach(one => { one.open = true })")
    assert shown.run("return document.documentElement.scrollWidth") <= width
    assert shown.run("return document.querySelectorAll('.downloads button').length") == 9


def test_labels_stay_text(shown):
    assert shown.run("return document.querySelectorAll('bdi b, summary b, li b').length") == 0
    assert DRUGS[1] in shown.run("return document.querySelector('#prediction-1 details').textContent")


def test_on_paper_groups_are_unfolded_and_buttons_gone(shown):
    shown.show(width=700, media="print")
    assert shown.run("return document.querySelector('.downloads').offsetHeight") == 0
    assert shown.run("return document.querySelector('#prediction-1 details').open") is False
    shown.run("dispatchEvent(new Event('beforeprint'))")
    assert shown.run("return document.querySelector('#prediction-1 details li').checkVisibility()")
    shown.run("dispatchEvent(new Event('afterprint'))")
    assert shown.run("return document.querySelector('#prediction-1 details').open") is False

"""The drawn graph read back as XML: every entity and hop once, boxes apart, arrows in the triples' directions."""

import re
from itertools import combinations, pairwise
from xml.etree import ElementTree

import numpy as np
import pytest
from path_examples import find_paths

from conve_tracin.influence.method import Influence
from conve_tracin.report.path_graph import ACROSS, DOWN, assign_lanes, draw_paths

HEAD, TAIL = 0, 1


def paths_of(*triples):
    influences = [Influence(*triple, 1 / (n + 1), n) for n, triple in enumerate(triples)]
    return find_paths(influences, HEAD, TAIL)


def random_paths(seed):
    random = np.random.default_rng(seed)
    triples = random.integers(0, [9, 2, 9], size=(25, 3)).tolist()
    return paths_of((HEAD, 0, 2), (TAIL, 1, 2), *triples)


GRAPHS = {
    "direct": paths_of((HEAD, 0, TAIL)),
    "one gene": paths_of((HEAD, 0, 2), (TAIL, 1, 2)),
    "three hops": paths_of((HEAD, 0, 2), (3, 0, 2), (3, 1, TAIL)),
    "shared": paths_of((HEAD, 0, 2), (2, 0, TAIL), (2, 0, 3), (3, 0, TAIL), (HEAD, 0, 3), (HEAD, 0, TAIL)),
    "crossing": paths_of((HEAD, 0, 2), (2, 0, 3), (3, 0, TAIL), (HEAD, 0, 3), (2, 0, TAIL)),
} | {f"random {seed}": random_paths(seed) for seed in range(8)}  # fmt: skip


@pytest.fixture(params=[ACROSS, DOWN], ids=["across", "down"])
def orientation(request):
    return request.param


@pytest.fixture(params=GRAPHS, ids=str)
def paths(request):
    return GRAPHS[request.param]


def draw(paths, orientation, **names):
    names = {"entity_name": "entity {}".format, "relation_name": "relation {}".format} | names
    return ElementTree.fromstring(draw_paths(paths, orientation, **names))


def boxes_of(root):
    """{entity: left, top, right, bottom}"""
    boxes = {}
    for group in root.findall("g[@data-entity]"):
        left, top, width, height = (float(group.find("rect").get(side)) for side in ("x", "y", "width", "height"))
        boxes[int(group.get("data-entity"))] = (left, top, left + width, top + height)
    return boxes


def corners_of(text):
    return [tuple(map(float, pair.split(","))) for pair in re.findall(r"-?[\d.]+,-?[\d.]+", text)]


def test_strongest_paths_are_drawn_each_entity_and_hop_once(paths, orientation):
    root = draw(paths, orientation)
    drawn, edges, _ = assign_lanes(paths, orientation.max_lanes)
    assert drawn == paths[: len(drawn)]
    assert len(drawn) >= min(len(paths), orientation.max_lanes)
    assert boxes_of(root).keys() == {entity for path in drawn for entity in path.entities}
    pairs = [frozenset(map(int, group.get("data-entities").split())) for group in root.findall("g[@data-entities]")]
    expected = {frozenset(step) for path in drawn for step in pairwise(path.entities)}
    assert set(pairs) == expected
    assert len(pairs) == len(expected) == len(edges)
    assert len(root.findall("g[@class='label']")) == len(edges)


def test_boxes_lie_apart_and_within_the_picture(paths, orientation):
    root = draw(paths, orientation, entity_name=lambda entity: f"a rather long name of entity number {entity}")
    _, _, width, height = map(float, root.get("viewBox").split())
    boxes = boxes_of(root)
    for left, top, right, bottom in boxes.values():
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
    for a, b in combinations(boxes.values(), 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_lines_join_the_boxes_of_their_entities(paths, orientation):
    root = draw(paths, orientation)
    boxes = boxes_of(root)
    for group in root.findall("g[@data-entities]"):
        corners = corners_of(group.find("path").get("d"))
        entities = map(int, group.get("data-entities").split())
        for entity, (x, y) in zip(entities, (corners[0], corners[-1]), strict=True):
            left, top, right, bottom = boxes[entity]
            assert left - 0.1 <= x <= right + 0.1
            assert top - 0.1 <= y <= bottom + 0.1


def test_arrows_point_to_the_tails_of_the_triples(orientation):
    # head → 2 ← 3 → tail
    root = draw(GRAPHS["three hops"], orientation)
    along = 1 if orientation.down else 0
    forward = {}
    for group in root.findall("g[@data-entities]"):
        tip, base, _ = corners_of(group.find("polygon").get("points"))
        forward[group.get("data-entities")] = tip[along] > base[along]
    assert forward == {"0 2": True, "2 3": False, "3 1": True}


def points_along(route):
    """Points along a route's lines and curves, as pairs."""
    points, last = [], None
    for command, written in re.findall(r"([MLC])([^MLC]*)", route):
        corners = np.array(corners_of(written))
        if command == "L":
            points += [last + (corners[0] - last) * t for t in np.linspace(0, 1, 30)]
        elif command == "C":
            weights = [((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3) for t in np.linspace(0, 1, 30)]
            points += list(np.array(weights) @ np.vstack([last, corners]))
        last = corners[-1]
    return np.array(points)


def test_a_line_to_a_box_above_leads_around_those_between(orientation):
    # 2 is one hop from the head on a path of its own; 4 and 5 lie one hop from the head, too, and lead to it.
    triples = [(HEAD, 0, 2), (2, 0, 3), (3, 0, TAIL), (HEAD, 0, 4), (4, 0, 6), (6, 0, TAIL), (HEAD, 0, 5), (5, 0, 2)]
    paths = paths_of(*triples, (2, 0, TAIL))
    paths = [path for path in paths if path.entities in {(0, 2, 3, 1), (0, 4, 6, 1), (0, 5, 2, 1)}]
    root = draw(paths, orientation)
    group = root.find("g[@data-entities='5 2']")
    points = points_along(group.find("path").get("d"))
    for entity, (left, top, right, bottom) in boxes_of(root).items():
        inside = (points > (left + 0.1, top + 0.1)).all(axis=1) & (points < (right - 0.1, bottom - 0.1)).all(axis=1)
        assert not inside.any(), entity
    # The arrow lies on the line and points the way that the line goes: from 5 to 2.
    tip, *base = map(np.array, corners_of(group.find("polygon").get("points")))
    nearest = [np.abs(points - place).sum(axis=1).argmin() for place in (np.mean(base, axis=0), tip)]
    assert nearest[0] < nearest[1]


def test_thicker_lines_have_more_influence(paths, orientation):
    root = draw(paths, orientation)
    _, edges, _ = assign_lanes(paths, orientation.max_lanes)
    widths = {
        group.get("data-entities"): float(group.find("path").get("stroke-width"))
        for group in root.findall("g[@data-entities]")
    }
    ordered = sorted(edges, key=lambda edge: edge.hop.influence.influence)
    by_influence = [widths["{} {}".format(*edge.entities)] for edge in ordered]
    assert by_influence == sorted(by_influence)


def test_long_and_hostile_names_become_text(orientation):
    hostile = '<script>alert(1)</script> & "more" \' ' * 5
    root = draw(GRAPHS["shared"], orientation, entity_name=lambda _: hostile, relation_name=lambda _: hostile)
    assert {element.tag for element in root.iter()} == {
        "svg", "title", "g", "path", "polygon", "rect", "text", "tspan",
    }  # fmt: skip
    assert all(group.find("title").text == hostile for group in root.findall("g[@data-entity]"))


def test_a_long_name_is_cut_last_where_it_says_which_way(orientation):
    names = {0: "affects (causes, object expression decreased)", 1: "treats"}
    root = draw(GRAPHS["three hops"], orientation, relation_name=names.get)
    texts = {"".join(text.itertext()) for text in root.iter("text")}
    shown = {" ".join(text.split()) for text in texts}
    assert any("↓" in text for text in shown)
    assert not any("…" in text for text in shown)
    assert any("treats" in text for text in shown)

"""Paths of evidence drawn as a graph: one lane for each path, the head at one end and the tail at the other.

Positions are computed along the paths (u) and across the lanes (v), in pixels. `ACROSS` lays u out from left to right
for a wide page, `DOWN` from top to bottom for a phone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from conve_tracin.influence.paths import GraphPath, Hop
from conve_tracin.report.lettering import BOLD, in_short, signed, text_width, wrap
from conve_tracin.report.template import render

if TYPE_CHECKING:
    from markupsafe import Markup

LINE_HEIGHT = 16
EDGE_LINE_HEIGHT = 14
NODE_FONT, EDGE_FONT = 13, 11.5


@dataclass(frozen=True, kw_only=True)
class Orientation:
    """Sizes of a drawing, in pixels.

    Attributes:
        down: u runs from top to bottom.
        layers: the middle of nodes along u: of the head, one or two hops into a path, and of the tail; a node halfway
            through a path of two hops stands at 1.5.
        lane: the distance of two lanes.
        fan: how far along u an edge takes to change its lane.
        max_lanes: how many lanes are drawn.
        node_width: of the boxes between head and tail.
        end_width: of the head's and the tail's box.
        node_lines, edge_lines: how many lines a name may take.
    """

    down: bool
    layers: dict[float, float]
    lane: float
    fan: float
    max_lanes: int
    node_width: float
    end_width: float
    node_lines: int
    edge_lines: int


HEAD, TAIL = 0.0, 3.0
ACROSS = Orientation(
    down=False, layers={HEAD: 76, 1.0: 377, 1.5: 510, 2.0: 643, TAIL: 944},
    lane=88, fan=44, max_lanes=6, node_width=140, end_width=150, node_lines=3, edge_lines=2,
)  # fmt: skip
DOWN = Orientation(
    down=True, layers={HEAD: 32, 1.0: 192, 1.5: 264, 2.0: 336, TAIL: 496},
    lane=120, fan=34, max_lanes=3, node_width=116, end_width=220, node_lines=3, edge_lines=2,
)  # fmt: skip


@dataclass(frozen=True)
class Node:
    """An entity's box: its middle in (u, v) and in (x, y), its size in x and y, and its name broken into lines."""

    entity: int
    name: str
    is_end: bool
    place: tuple[float, float]
    middle: tuple[float, float]
    width: float
    lines: list[str]

    @property
    def height(self) -> float:
        """The lines and the space around them."""
        return len(self.lines) * LINE_HEIGHT + 14

    @property
    def baseline(self) -> float:
        """The y of the first line."""
        return self.middle[1] - (len(self.lines) - 1) * LINE_HEIGHT / 2 + NODE_FONT * 0.35


@dataclass(frozen=True)
class Edge:
    """A hop between two entities and the lane that it runs in."""

    entities: tuple[int, int]
    hop: Hop
    lane: int


def draw_paths(
    paths: Sequence[GraphPath],
    orientation: Orientation,
    *,
    entity_name: Callable[[int], str],
    relation_name: Callable[[int], str],
    entity_class: Callable[[int], str] = lambda _: "",
) -> "Markup":
    """Draw the first paths, one for each lane there is, as an SVG whose colours and fonts the page gives.

    Args:
        paths: best first, all with the same ends; at least one.
        orientation: ACROSS or DOWN.
        entity_name, relation_name: ids to names.
        entity_class: an entity's further CSS class, after a space, or "".
    """
    paths, edges, lane_of = assign_lanes(paths, orientation.max_lanes)
    layout = _Layout(orientation, num_lanes=1 + max(edge.lane for edge in edges))
    start, end = paths[0].entities[0], paths[0].entities[-1]
    nodes = {
        entity: layout.node(entity, place, entity_name(entity), is_end=entity in (start, end))
        for entity, place in place_entities(paths, lane_of, layout.num_lanes, orientation).items()
    }
    # A prediction without any influence still has its paths.
    strongest = max(abs(edge.hop.influence.influence) for edge in edges) or 1.0
    names = [relation_name(edge.hop.influence.relation) for edge in edges]
    return render(
        "path_graph.svg.j2",
        size=layout.size,
        ends=(entity_name(start), entity_name(end)),
        nodes=[(node, entity_class(node.entity)) for node in nodes.values()],
        edges=[layout.edge(edge, nodes, name, strongest=strongest) for edge, name in zip(edges, names, strict=True)],
        line_height=LINE_HEIGHT,
        label_line_height=EDGE_LINE_HEIGHT,
    )


def assign_lanes(paths: Sequence[GraphPath], max_lanes: int) -> tuple[list[GraphPath], list[Edge], dict[int, int]]:
    """Give each path a lane for what it adds to the paths before it, until the lanes are used up.

    Returns:
        The paths that are drawn, their edges, each pair of entities once, and the lane of each entity between the ends.
    """
    drawn: list[GraphPath] = []
    edges: dict[frozenset[int], Edge] = {}
    lane_of: dict[int, int] = {}
    lane = 0
    for path in paths:
        steps = zip(pairwise(path.entities), path.hops, strict=True)
        new = {frozenset(entities): Edge(entities, hop, lane) for entities, hop in steps}
        new = {pair: edge for pair, edge in new.items() if pair not in edges}
        if new and lane == max_lanes:
            break
        drawn.append(path)
        edges |= new
        for entity in path.entities[1:-1]:
            lane_of.setdefault(entity, lane)
        lane += bool(new)
    return drawn, list(edges.values()), lane_of


def place_entities(
    paths: Sequence[GraphPath], lane_of: dict[int, int], num_lanes: int, orientation: Orientation
) -> dict[int, tuple[float, float]]:
    """Place the entities that have a lane, and the two ends in the middle of all lanes: {entity: (u, v)}."""
    layers: dict[int, float] = {}
    # Paths of three hops decide first: an entity halfway of two hops can stand at either of their places.
    for path in sorted(paths, key=lambda path: -len(path.hops)):
        for position, entity in enumerate(path.entities[1:-1], start=1):
            layers.setdefault(entity, float(position) if len(path.hops) == 3 else 1.5)
    middle = num_lanes * orientation.lane / 2
    places = {paths[0].entities[0]: (orientation.layers[HEAD], middle)}
    places |= {
        entity: (orientation.layers[layers[entity]], (lane + 0.5) * orientation.lane)
        for entity, lane in lane_of.items()
    }
    return places | {paths[0].entities[-1]: (orientation.layers[TAIL], middle)}


class _Layout:
    """Turns places along u and v into what the template draws in x and y."""

    def __init__(self, orientation: Orientation, *, num_lanes: int) -> None:
        self.orientation, self.num_lanes = orientation, num_lanes
        # The head's box begins at 1, the tail's ends one before the length.
        self.length = orientation.layers[HEAD] + orientation.layers[TAIL]
        self.breadth = num_lanes * orientation.lane
        # A head that is wider than all lanes together needs room on both sides.
        least = orientation.end_width + 2 if orientation.down else (orientation.node_lines + 1) * LINE_HEIGHT + 2
        self.margin = max(0.0, (least - self.breadth) / 2)

    @property
    def size(self) -> tuple[float, float]:
        """Width and height."""
        return self.at(self.length, self.breadth + self.margin)

    def at(self, u: float, v: float) -> tuple[float, float]:
        """Turn (u, v) into (x, y)."""
        v += self.margin
        return (v, u) if self.orientation.down else (u, v)

    def node(self, entity: int, place: tuple[float, float], name: str, *, is_end: bool) -> Node:
        """Size the box of an entity at (u, v) to its name."""
        width = self.orientation.end_width if is_end else self.orientation.node_width
        # The names of the two ends are bold.
        font = NODE_FONT * (BOLD if is_end else 1)
        lines = wrap(name, width - 12, font, max_lines=self.orientation.node_lines)
        return Node(entity, name, is_end, place, self.at(*place), width, lines)

    def edge(self, edge: Edge, nodes: dict[int, Node], name: str, *, strongest: float) -> dict[str, Any]:
        """Place a hop's line, its arrow in the direction of its triple, and its label."""
        influence, fan = edge.hop.influence, self.orientation.fan
        start, end = (nodes[entity] for entity in edge.entities)
        (start_u, start_v), (end_u, end_v) = start.place, end.place
        lane = (edge.lane + 0.5) * self.orientation.lane
        leave, arrive = start_u + self._half_length(start), end_u - self._half_length(end)
        begin = leave + (fan if start_v != lane else 0)
        finish = arrive - (fan if end_v != lane else 0)
        if start_u == end_u:
            route, begin, finish = self._around(start, end, lane)
        elif finish - begin < 20:
            # The two boxes stand nearly above each other: a slanted line between the lanes is all there is room for.
            begin, finish, lane = start_u, end_u, (start_v + end_v) / 2
            route = f"M{self._point(begin, start_v)} L{self._point(finish, end_v)}"
        else:
            route = (
                f"M{self._point(leave, start_v)} {self._bend(leave, start_v, begin, lane)} "
                f"L{self._point(finish, lane)} {self._bend(finish, lane, arrive, end_v)}"
            )
        width = 1.5 + 3.5 * abs(influence.influence) / strongest
        number = signed(influence.influence, digits=2) + (f" · {edge.hop.others} more" if edge.hop.others else "")
        return {
            "entities": edge.entities,
            "is_against": influence.influence < 0,
            "route": route,
            "width": width,
            "arrow": self._arrow(begin, finish, lane, forward=edge.hop.forward, width=width),
            "label": self._label((begin + finish) / 2, lane, finish - begin, name=name, number=number),
        }

    def _around(self, start: Node, end: Node, lane: float) -> tuple[str, float, float]:
        """Lead from a box to one above or below it, beyond those between them: the route, and u along its label."""
        (start_u, start_v), (end_u, end_v) = start.place, end.place
        fan = self.orientation.fan
        leave, arrive = start_u + self._half_length(start), end_u + self._half_length(end)
        # The lane of one of the two is free behind its box.
        near = arrive if end_v == lane else leave + (fan if start_v != lane else 0)
        far = near + 1.8 * fan
        if end_v == lane:
            back = self._hairpin(start_v, far, lane, beyond=far + fan)
            return f"M{self._point(leave, start_v)} {back} L{self._point(near, lane)}", far, near
        out = f"M{self._point(leave, start_v)} {self._bend(leave, start_v, near, lane)} L{self._point(far, lane)}"
        return f"{out} {self._hairpin(lane, arrive, end_v, beyond=far + fan)}", near, far

    def _hairpin(self, v: float, end_u: float, end_v: float, *, beyond: float) -> str:
        """Write a curve that leaves forwards along u, to `beyond`, and arrives backwards."""
        return f"C{self._point(beyond, v)} {self._point(beyond, end_v)} {self._point(end_u, end_v)}"

    def _half_length(self, node: Node) -> float:
        return (node.height if self.orientation.down else node.width) / 2

    def _bend(self, u: float, v: float, end_u: float, end_v: float) -> str:
        """Write a curve that leaves and arrives along u."""
        middle = (u + end_u) / 2
        return f"C{self._point(middle, v)} {self._point(middle, end_v)} {self._point(end_u, end_v)}"

    def _point(self, u: float, v: float) -> str:
        return "{:g},{:g}".format(*self.at(u, v))

    def _arrow(self, begin: float, finish: float, lane: float, *, forward: bool, width: float) -> str:
        tip = finish if forward else begin
        sign = 1 if forward == (begin <= finish) else -1
        half = 3.5 + width
        corners = ((tip, lane), (tip - sign * 2 * half, lane - half), (tip - sign * 2 * half, lane + half))
        return " ".join(self._point(*corner) for corner in corners)

    def _label(self, u: float, v: float, room: float, *, name: str, number: str) -> dict[str, Any]:
        x, y = self.at(u, v)
        down, lane = self.orientation.down, self.orientation.lane
        at_most, max_lines = lane - 4 if down else max(room - 8, 74), self.orientation.edge_lines
        lines = wrap(name, at_most, EDGE_FONT, max_lines=max_lines)
        if lines[-1].endswith("…"):
            # Which way something is affected must not be what is cut off.
            lines = wrap(in_short(name), at_most, EDGE_FONT, max_lines=max_lines)
        if down:
            above = y - len(lines) * EDGE_LINE_HEIGHT / 2 + 4
            below = above + len(lines) * EDGE_LINE_HEIGHT
        else:
            above = y - 8 - (len(lines) - 1) * EDGE_LINE_HEIGHT
            below = y + 17
        width = max(text_width(line, EDGE_FONT) for line in [*lines, number])
        height = (len(lines) + 1) * EDGE_LINE_HEIGHT + 4
        # A line that runs down would run through its label.
        plate = {"x": x - width / 2, "y": above - EDGE_FONT - 1, "width": width, "height": height} if down else None
        return {"name": name, "number": number, "x": x, "above": above, "below": below, "lines": lines, "plate": plate}

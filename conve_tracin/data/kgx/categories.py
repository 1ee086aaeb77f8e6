"""What kind of thing each entity is: the Biolink category of its node in a KGX file."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from conve_tracin.data.kgx.files import MalformedLineError, numbered, open_kgx
from conve_tracin.data.names import BIOLINK_PREFIX
from conve_tracin.data.vocabulary import Vocabulary
from conve_tracin.errors import InputError

logger = logging.getLogger(__name__)

UNKNOWN = -1


@dataclass(frozen=True, eq=False)
class Categories:
    """The category of each entity.

    Attributes:
        names: Biolink classes without their prefix; those of most entities first.
        of: places in `names`, (E,); UNKNOWN for an entity whose node has none.
        listed: all classes of an entity's node; those of an entity that is not in it are the one of `of`.
    """

    names: tuple[str, ...]
    of: np.ndarray
    listed: Mapping[int, frozenset[str]] = field(default_factory=dict)

    def name(self, entity: int) -> str | None:
        """Return an entity's category, None if it is unknown."""
        place = self.of[entity]
        return None if place == UNKNOWN else self.names[place]

    def are_all_others(self, entities: np.ndarray, category: str) -> bool:
        """Whether each of some entities (M,) is known to be something else than a category."""
        kinds = self.of[entities]
        if (kinds == UNKNOWN).any() or (category in self.names and (kinds == self.names.index(category)).any()):
            return False
        return not any(category in self.listed.get(entity, ()) for entity in np.unique(entities).tolist())


def read_categories(path: str | Path, entities: Vocabulary) -> Categories:
    """Read the categories of the entities' nodes.

    Many graphs list a node's class with all classes above it. The one that the fewest entities have is the most
    specific, and is taken.

    Raises InputError at the first line that holds no node, and if no entity of the graph has a category.
    """
    # Many nodes list the same classes, which are kept once.
    kept: dict[frozenset[str], frozenset[str]] = {}
    classes = {
        entities.index[identifier]: kept.setdefault(frozenset(listed), frozenset(listed))
        for identifier, listed in classes_of_nodes(path)
        if listed and identifier in entities.index
    }
    if not classes:
        raise InputError(f"{path}: no node with a category is in {entities.source}; give the nodes of this graph")
    if 2 * len(classes) < len(entities):
        logger.warning(
            "%s: tells the category of %d of %d entities; if it is another graph's, give the nodes of this graph",
            path, len(classes), len(entities),
        )  # fmt: skip
    counts = Counter(name for listed in classes.values() for name in listed)
    chosen = {entity: min(listed, key=lambda name: (counts[name], name)) for entity, listed in classes.items()}
    names = tuple(name for name, _ in Counter(chosen.values()).most_common())
    place_of = {name: place for place, name in enumerate(names)}
    of = np.full(len(entities), UNKNOWN)
    of[list(chosen)] = [place_of[name] for name in chosen.values()]
    return Categories(names, of, classes)


def classes_of_nodes(path: str | Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the identifier of each node of a KGX file, and its Biolink classes without their prefix.

    Raises InputError at the first line that holds no node.
    """
    with open_kgx(Path(path), "nodes") as (parse, blocks):
        for number, line in numbered(blocks):
            try:
                node = parse(line)
            except MalformedLineError as error:
                raise InputError(f"{path}:{number}: {error}; a node has an id and categories") from None
            listed = node.get("category")
            listed = listed if isinstance(listed, list) else [listed or ""]
            yield str(node.get("id")), [str(name).removeprefix(BIOLINK_PREFIX) for name in listed if name]

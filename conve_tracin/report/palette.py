"""Which colour stands for which category of entities, on a whole page."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from conve_tracin.data.kgx.categories import Categories
from conve_tracin.report.lettering import category_in_words, plural

# As many as page.css has colours for; further categories have none.
COLOURS = 7


@dataclass(frozen=True)
class Palette:
    """The colours of a page.

    Attributes:
        categories: of the entities; None if they are unknown.
        colours: {category: its number in page.css}.
    """

    categories: Categories | None
    colours: dict[str, int]

    @classmethod
    def of(cls, categories: Categories | None, entities: Iterable[int]) -> "Palette":
        """Give the categories of the entities that a page draws colours, the most frequent first."""
        if categories is None:
            return cls(None, {})
        counts = Counter(filter(None, map(categories.name, entities)))
        return cls(categories, {name: colour for colour, (name, _) in enumerate(counts.most_common(COLOURS))})

    def class_of(self, entity: int) -> str:
        """Return the CSS class of an entity's colour, or "" if it has none."""
        name = None if self.categories is None else self.categories.name(entity)
        return f" kind-{self.colours[name]}" if name in self.colours else ""

    def legend(self, entities: Iterable[int]) -> list[tuple[str, str]]:
        """Return class and words of each category that some entities have, in the order of the colours."""
        if self.categories is None:
            return []
        present = {self.categories.name(entity) for entity in entities}
        return [(f"kind-{colour}", category_in_words(name)) for name, colour in self.colours.items() if name in present]

    def kind_of(self, entities: Iterable[int]) -> str | None:
        """Return the category in words, in the plural, that all of some entities have; None without one."""
        names = set() if self.categories is None else {self.categories.name(entity) for entity in entities}
        (name,) = names if len(names) == 1 else (None,)
        return None if name is None else plural(category_in_words(name))

"""The data sets that PyKEEN knows, as triples of labels."""

import difflib
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from conve_tracin.errors import InputError

LabelTriple = tuple[str, str, str]


def load_dataset_triples(name: str) -> dict[str, list[LabelTriple]]:
    """Return the label triples of a PyKEEN dataset under the keys `train`, `valid` and `test`.

    `name` is compared without case. Nations, Kinships and UMLS come with the pykeen package; the others are
    downloaded by PyKEEN. A dataset without validation triples has an empty list there.

    Raises InputError if no dataset has that name, or it cannot be loaded.
    """
    from pykeen.datasets import dataset_resolver

    names = {cls.__name__.lower(): cls.__name__ for cls in dataset_resolver.lookup_dict.values()}
    if name.lower() not in names:
        close = difflib.get_close_matches(name.lower(), names, n=3)
        known = [names[key] for key in close] or sorted(names.values())
        raise InputError(f"{name!r}: PyKEEN has no dataset of this name; {'did you mean' if close else 'it has'} "
                         f"{', '.join(known)}{'?' if close else ''}")  # fmt: skip
    try:
        with quiet_pykeen():
            dataset = dataset_resolver.lookup(name.lower())()
            factories = {"train": dataset.training, "valid": dataset.validation, "test": dataset.testing}
            return {part: _label_triples(factory) for part, factory in factories.items()}
    except Exception as error:  # a download fails in as many ways as there are hosts and archive formats
        raise InputError(
            f"{name}: PyKEEN could not load this dataset ({first_line(error)}); "
            "check the network, or use Nations, Kinships or UMLS, which need none"
        ) from error


def _label_triples(factory: object) -> list[LabelTriple]:
    if factory is None:
        return []
    return [tuple(row) for row in factory.label_triples(factory.mapped_triples).tolist()]


@contextmanager
def quiet_pykeen() -> Iterator[None]:
    """Hold back PyKEEN's advice on seeds and inverse triples, which is for training with it."""
    logger = logging.getLogger("pykeen")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def first_line(error: Exception) -> str:
    """Return how an error of PyKEEN begins."""
    lines = str(error).strip().splitlines()
    # torch lists the offending keys after a headline that only names the class.
    return " ".join(line.strip() for line in lines[:2]) if lines else type(error).__name__

"""The JSON of the influence scripts, read back: predictions and the influences listed for each."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conve_tracin.data.text import read_lines
from conve_tracin.data.vocabulary import Vocabulary
from conve_tracin.errors import InputError
from conve_tracin.settings import SIDES, TAIL

Triple = tuple[int, int, int]

ENDS = ("head", "relation", "tail")


@dataclass(frozen=True)
class Explained:
    """A prediction with the influences that a file lists for it, strongest first; triples are ids.

    Attributes:
        triple: the prediction.
        side: which end of it is the answer.
        influences: (training triple, influence) each.
        source: where it was read, for messages.
    """

    triple: Triple
    side: str
    influences: list[tuple[Triple, float]]
    source: str

    def proponents(self, count: int) -> list[tuple[Triple, float]]:
        """Return the strongest training triples of positive influence, at most `count`."""
        positive = [listed for listed in self.influences if listed[1] > 0]
        return sorted(positive, key=lambda listed: -listed[1])[:count]


def read_explained(paths: Iterable[Path | str], entities: Vocabulary, relations: Vocabulary) -> list[Explained]:
    """Read the predictions in the outputs of tracin_pytorch.py and run_tracin.py.

    Raises InputError for a file that is none, that belongs to other mappings, or for a prediction that is there twice.
    """
    found: dict[tuple[Triple, str], Explained] = {}
    for path in map(Path, paths):
        for result, source in _results_in(path):
            explained = _explained(result, source, entities, relations)
            first = found.setdefault((explained.triple, explained.side), explained)
            if first is not explained:
                raise InputError(f"{source}: is the prediction of {first.source}; give each prediction once")
    return list(found.values())


def _results_in(path: Path) -> Iterator[tuple[Any, str]]:
    try:
        content = json.loads("\n".join(read_lines(path)))
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}:{error.lineno}: is not valid JSON ({error.msg}); give the --output of tracin_pytorch.py or "
            "run_tracin.py"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON; give the output of an influence script") from error
    if isinstance(content, Mapping) and isinstance(content.get("results"), Sequence):
        if not content["results"]:
            raise InputError(f"{path}: its results are empty; explain a prediction first")
        yield from ((result, f"{path}: results[{place}]") for place, result in enumerate(content["results"]))
    elif isinstance(content, Mapping) and "self_influences" in content:
        raise InputError(f"{path}: holds self-influences, which explain no prediction; give the output of --mode test")
    else:
        yield content, str(path)


def _explained(result: Any, source: str, entities: Vocabulary, relations: Vocabulary) -> Explained:
    if not isinstance(result, Mapping) or not {"test_triple", "influences"} <= set(result):
        raise InputError(f"{source}: holds no test_triple with influences; give the output of an influence script")
    influences = result["influences"]
    if not isinstance(influences, Sequence) or isinstance(influences, str):
        raise InputError(f"{source}: its influences are no list; give the output of an influence script")
    prediction = result.get("prediction")
    side = prediction.get("predicted_side", TAIL) if isinstance(prediction, Mapping) else TAIL
    if side not in SIDES:
        raise InputError(
            f"{source}: its predicted_side is neither head nor tail; give the output of an influence script"
        )
    return Explained(
        triple=_triple(result["test_triple"], "", f"{source}: test_triple", entities, relations),
        side=side,
        influences=[
            (
                _triple(row, "train_", f"{source}: influences[{place}]", entities, relations),
                _influence(row, f"{source}: influences[{place}]"),
            )
            for place, row in enumerate(influences)
        ],
        source=source,
    )


def _triple(row: Any, start: str, source: str, entities: Vocabulary, relations: Vocabulary) -> Triple:
    """Return the ids of a triple, whose labels, if they are told, are those of the mappings."""
    ids = []
    for end, vocabulary in zip(ENDS, (entities, relations, entities), strict=True):
        position = row.get(start + end) if isinstance(row, Mapping) else None
        if not isinstance(position, int) or isinstance(position, bool):
            raise InputError(f"{source}: has no id {start}{end}; give the output of an influence script")
        label = row.get(f"{start}{end}_key")
        if not 0 <= position < len(vocabulary) or label not in (None, vocabulary.labels[position]):
            raise InputError(
                f"{source}: its {start}{end} is not that of {vocabulary.source}; give the mappings of the run that "
                "wrote it"
            )
        ids.append(position)
    return ids[0], ids[1], ids[2]


def _influence(row: Mapping[str, Any], source: str) -> float:
    value = row.get("influence")
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise InputError(f"{source}: has no finite influence; give the output of an influence script")
    return float(value)

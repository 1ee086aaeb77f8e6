"""From a PyKEEN dataset or files of label triples to the files that training and influence read.

Sources turn into a `SplitGraph`; `write_graph` is the same for all of them.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from conve_tracin.commands import train_command
from conve_tracin.data.remarks import remarks_on_splits
from conve_tracin.data.splits import SPLITS, SplitGraph, hold_out, without_duplicates
from conve_tracin.data.text import as_id, read_lines, shown, single_line
from conve_tracin.data.triples import OPENKE_REMEDY, is_header, label_blocks, triple_lines
from conve_tracin.data.vocabulary import Vocabulary, read_vocabulary, vocabulary_lines
from conve_tracin.errors import InputError
from conve_tracin.files import write_together

logger = logging.getLogger(__name__)

SPLIT_SUFFIXES = (".txt", ".tsv", ".txt.gz", ".tsv.gz")

OPENKE_SUFFIXES = ("2id.txt", "2id.txt.gz")

ENTITY_FILE, RELATION_FILE, NAME_FILE = "entity_to_id.tsv", "relation_to_id.tsv", "node_name_dict.txt"

OUTPUT_FILES = (*(f"{split}.txt" for split in SPLITS), ENTITY_FILE, RELATION_FILE, NAME_FILE)

LabelTriple = tuple[str, str, str]


def graph_from_dataset(name: str, *, fractions: Mapping[str, float], random_seed: int) -> SplitGraph:
    """Return a dataset that PyKEEN knows, in its own splits.

    Where it has no validation or test triples, the share that `fractions` gives for valid or test is taken out
    of its training triples. Raises InputError where PyKEEN has no dataset of this name or cannot load it.
    """
    from conve_tracin.data.datasets import load_dataset_triples

    splits = {split: [_columns(triples)] for split, triples in load_dataset_triples(name).items() if triples}
    graph = graph_from_labels(splits)
    missing = {split: fraction for split, fraction in fractions.items() if split not in splits}
    if not missing:
        return graph
    logger.info("%s has no %s triples: some are taken out of its training triples", name, " and ".join(missing))
    held_out = hold_out(graph.splits["train"], missing, random_seed=random_seed)
    return replace(graph, splits={**graph.splits, **held_out})


def graph_from_splits(paths: Mapping[str, Path], *, triples_format: str | None = None) -> SplitGraph:
    """Return the graph of three files of triples, given under the keys train, valid and test.

    The vocabulary is that of all three. Raises InputError, with file and line, for malformed files.
    """
    return read_graph_files({split: paths[split] for split in SPLITS}, triples_format=triples_format)


def graph_from_file(
    path: Path,
    *,
    fractions: Mapping[str, float],
    random_seed: int,
    triples_format: str | None = None,
    together: bool = False,
) -> SplitGraph:
    """Return the graph of one file of label triples, split so that training sees every entity and relation.

    `fractions` gives the shares of valid and test. Triples that occur more than once are kept once, as a copy in
    training would give a test triple away. Raises InputError for a malformed file, or one from which no triple
    can be held out.
    """
    whole = read_graph_files({"train": path}, triples_format=triples_format)
    triples = without_duplicates(whole.splits["train"])
    duplicates = len(whole.splits["train"]) - len(triples)
    if duplicates:
        logger.info("%s: %d triples occur more than once and are kept once", path, duplicates)
    return replace(whole, splits=hold_out(triples, fractions, random_seed=random_seed, together=together))


def split_files(directory: Path, *, triples_format: str | None = None) -> dict[str, Path]:
    """Return the paths of the train, valid and test files in `directory`; raise InputError where one is missing."""
    suffixes = OPENKE_SUFFIXES if triples_format == "openke" else SPLIT_SUFFIXES
    paths = {}
    for split in SPLITS:
        candidates = (directory / f"{split}{suffix}" for suffix in suffixes)
        path = next((candidate for candidate in candidates if candidate.is_file()), None)
        if path is None:
            is_openke = any((directory / f"{split}{suffix}").is_file() for suffix in OPENKE_SUFFIXES)
            remedy = f"it has OpenKE's {split}2id.txt; {OPENKE_REMEDY}" if is_openke else (
                f"a directory must hold {', '.join(split + suffixes[0] for split in SPLITS[:2])} and test{suffixes[0]}"
            )  # fmt: skip
            raise InputError(f"{directory}: has no {split}{suffixes[0]}; {remedy}")
        paths[split] = path
    return paths


def read_graph_files(paths: Mapping[str, Path], *, triples_format: str | None) -> SplitGraph:
    """Read a file of triples for each split.

    Formats: "labels"; "openke", ids as head, tail, relation below a count, with entity2id.txt and relation2id.txt
    beside the first file; None for labels that are not to look like a header or like ids.

    Raises InputError, with file and line, for malformed files.
    """
    if triples_format == "openke":
        return _graph_of_openke(paths)
    graph = graph_from_labels({split: _label_columns(path) for split, path in paths.items()})
    if triples_format is None:
        for path in paths.values():
            _require_no_header(path)
        if all(as_id(label) is not None for label in (*graph.entities, *graph.relations)):
            raise InputError(
                f"{next(iter(paths.values()))}: every label is an integer, as in files of ids (OpenKE's "
                "train2id.txt, LibKGE's train.del, PyKEEN's numeric_triples); give the file of labels, or say "
                "--triples-format openke (head, tail, relation) or labels"
            )
    return graph


def _require_no_header(path: Path) -> None:
    first = next(iter(_label_columns(path)))
    labels = [column[0] for column in first]
    if is_header(labels):
        raise InputError(
            f"{path}:1: {' '.join(map(shown, labels))} is a header; triples files have none, delete the line, or say "
            "--triples-format labels where it is a triple"
        )


def _graph_of_openke(paths: Mapping[str, Path]) -> SplitGraph:
    """Read OpenKE's files of ids; the labels come from the mappings beside the first."""
    folder = next(iter(paths.values())).parent
    mappings = []
    for kind in ("entity", "relation"):
        found = next((path for suffix in ("", ".gz") if (path := folder / f"{kind}2id.txt{suffix}").is_file()), None)
        if found is None:
            raise InputError(f"{folder}: has no {kind}2id.txt, OpenKE's mapping; put it beside the triples")
        mappings.append(read_vocabulary(found, kind))
    entities, relations = mappings
    splits = {split: _openke_triples(path, entities, relations) for split, path in paths.items()}
    return SplitGraph(list(entities.labels), list(relations.labels), splits)


def _openke_triples(path: Path, entities: Vocabulary, relations: Vocabulary) -> np.ndarray:
    """Read `head tail relation` ids below a count, (N, 3) as head, relation, tail."""
    first, *lines = read_lines(path)
    if as_id(first.strip()) != len(lines) or not lines:
        raise InputError(f"{path}:1: {shown(first)} is not the count of the {len(lines)} triples below it; correct it")
    triples = []
    for number, line in enumerate(lines, start=2):
        ids = [as_id(text) for text in line.split()]
        if len(ids) != 3 or None in ids:
            raise InputError(f"{path}:{number}: {shown(line)} is not three ids: head, tail, relation; correct it")
        head, tail, relation = ids
        try:
            triples.append(
                (entities.require_id(head), relations.require_id(relation), entities.require_id(tail))
            )  # fmt: skip
        except InputError as error:
            raise InputError(f"{path}:{number}: {error} (the order is head, tail, relation)") from None
    return np.array(triples, dtype=np.int64)


def graph_from_labels(splits: Mapping[str, Iterable[list[np.ndarray]]]) -> SplitGraph:
    """Number the labels of all splits in sorted order.

    Each split comes as blocks of three object arrays of labels: heads, relations and tails.
    """
    entities, relations = _LabelIds(), _LabelIds()
    numbered = {}
    for split, blocks in splits.items():
        parts = [
            np.stack([entities.number(heads), relations.number(labels), entities.number(tails)], axis=1)  # (n, 3)
            for heads, labels, tails in blocks
        ]
        numbered[split] = np.concatenate(parts)
    entity_labels, entity_ids = entities.sorted()
    relation_labels, relation_ids = relations.sorted()
    for triples in numbered.values():
        triples[:, 0] = entity_ids[triples[:, 0]]
        triples[:, 1] = relation_ids[triples[:, 1]]
        triples[:, 2] = entity_ids[triples[:, 2]]
    return SplitGraph(entity_labels, relation_labels, numbered)


class _LabelIds:
    """Numbers for labels in the order in which they are met."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}

    def number(self, labels: np.ndarray) -> np.ndarray:
        """Return the numbers of an object array of labels, (n,) int64; labels not met before get new ones."""
        import pandas as pd

        codes, distinct = pd.factorize(labels)
        return np.array([self.ids.setdefault(label, len(self.ids)) for label in distinct], dtype=np.int64)[codes]

    def sorted(self) -> tuple[list[str], np.ndarray]:
        """Return the labels in sorted order, and for each number the label's place in it."""
        labels = sorted(self.ids)
        places = np.empty(len(labels), dtype=np.int64)
        places[[self.ids[label] for label in labels]] = np.arange(len(labels))
        return labels, places


def _columns(triples: list[LabelTriple]) -> list[np.ndarray]:
    return [np.array(column, dtype=object) for column in zip(*triples, strict=True)]


def _label_columns(path: Path) -> Iterator[list[np.ndarray]]:
    return (columns for _, columns in label_blocks(path))


def require_inputs_kept(output_dir: Path, inputs: Iterable[Path], *, more: Iterable[str] = ()) -> None:
    """Raise InputError where a file that `write_graph` writes to `output_dir`, or one of `more`, is an input."""
    outputs = [output_dir / name for name in (*OUTPUT_FILES, *more)]
    for path in inputs:
        for output in outputs:
            if output.exists() and path.exists() and output.samefile(path):
                raise InputError(f"{path}: would be overwritten; choose another --output-dir than {output_dir}")


def write_graph(graph: SplitGraph, output_dir: Path, more: Mapping[str, Iterable[str]] | None = None) -> None:
    """Write the six files of OUTPUT_FILES to `output_dir`, all of them or none.

    `more` maps the names of further files to their text. Raises InputError for labels that the files cannot hold, or
    where the directory cannot be written.
    """
    splits = [(output_dir / f"{split}.txt", _label_triples(graph, graph.splits[split])) for split in SPLITS]
    labels = ((output_dir / ENTITY_FILE, graph.entities), (output_dir / RELATION_FILE, graph.relations))
    write_together(
        {path: vocabulary_lines(path, names) for path, names in labels}
        | {path: triple_lines(path, triples) for path, triples in splits}
        | {output_dir / NAME_FILE: _name_lines(graph)}
        | {output_dir / name: text for name, text in (more or {}).items()}
    )


def _name_lines(graph: SplitGraph) -> Iterator[str]:
    for position, label in enumerate(graph.entities):
        yield f"{single_line(graph.names.get(label, '')) or readable_name(label)}\t{position}\n"


def _label_triples(graph: SplitGraph, triples: np.ndarray, *, rows_at_a_time: int = 100_000) -> Iterator[LabelTriple]:
    entities = np.array(graph.entities, dtype=object)
    relations = np.array(graph.relations, dtype=object)
    for start in range(0, len(triples), rows_at_a_time):
        heads, labels, tails = triples[start : start + rows_at_a_time].T
        yield from zip(entities[heads], relations[labels], entities[tails], strict=True)


def readable_name(label: str) -> str:
    """Return a label as a person would write it: blanks for underscores; CURIEs and the like stay as they are."""
    return single_line(label.replace("_", " ")) or label


def summary(graph: SplitGraph, output_dir: Path) -> str:
    """Say what `write_graph` has written, what is odd about the splits, and which command comes next."""
    lines = [f"{len(graph.entities):,} entities, {len(graph.relations):,} relations; written to {output_dir}:"]
    lines += [f"  {split + '.txt':<20}{len(graph.splits[split]):>12,} triples" for split in SPLITS]
    lines += [
        f"  {ENTITY_FILE:<20}{len(graph.entities):>12,} labels",
        f"  {RELATION_FILE:<20}{len(graph.relations):>12,} labels",
        f"  {NAME_FILE:<20}{len(graph.entities):>12,} names",
        *remarks_on_splits(graph),
        f"Next: {next_command(graph, output_dir)}",
    ]
    return "\n".join(lines)


def next_command(graph: SplitGraph, output_dir: Path) -> str:
    """Return the command line that trains on the files in `output_dir` as docs/training.md advises."""
    files = {split: output_dir / f"{split}.txt" for split in SPLITS}
    files |= {"entity_to_id": output_dir / ENTITY_FILE, "relation_to_id": output_dir / RELATION_FILE}
    num_triples, num_entities = len(graph.splits["train"]), len(graph.entities)
    return train_command(files, output_dir=output_dir / "model", num_triples=num_triples, num_entities=num_entities)

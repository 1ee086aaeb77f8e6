"""How well a model ranks each test triple, which it ranks best, and the table of them all."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from conve_tracin.data.names import Names
from conve_tracin.data.queries import examples_of, known_tails
from conve_tracin.data.text import single_line, visible
from conve_tracin.errors import InputError
from conve_tracin.files import atomic_write
from conve_tracin.model.conve import ConvE
from conve_tracin.ranking.ranks import choose_batch_size, rank_triples, ranking_metrics

COLUMNS = (
    "tail_rank", "head_rank", "score", "head", "relation", "tail", "head_name", "relation_name", "tail_name",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class RankedTriples:
    """Test triples (N, 3) in the order of their file, with scores and filtered ranks, each (N,).

    Ranks count from 1, ties have their mean rank. `head_ranks` is None for a model without inverse triples.
    """

    triples: np.ndarray
    scores: np.ndarray
    tail_ranks: np.ndarray
    head_ranks: np.ndarray | None

    def best_first(self) -> np.ndarray:
        """Return the rows (N,) by tail rank; equal ranks by score, the highest first, then by the file's order."""
        return np.lexsort((-self.scores, self.tail_ranks))


def rank_triples_of(
    model: ConvE, splits: tuple[np.ndarray, np.ndarray, np.ndarray], *, inverse_triples: bool, batch_size: int
) -> RankedTriples:
    """Rank the triples of the last of `splits` (train, valid, test), filtered against all three.

    Args:
        model: in eval mode.
        splits: (N, 3) ids each, relations as in the files.
        inverse_triples: whether the model has inverse relations, so that heads can be ranked too.
        batch_size: triples ranked at once; fewer where there are many entities.
    """
    device = next(model.parameters()).device
    test = splits[-1]
    examples = examples_of(test, inverse_triples=inverse_triples)
    ranks = rank_triples(
        model,
        examples,
        known_tails(splits, inverse_triples=inverse_triples, device=device),
        num_relations=model.config.num_relations,
        batch_size=choose_batch_size(model.config.num_entities, at_most=batch_size),
        progress="ranking",
    ).numpy()
    parts = torch.from_numpy(examples[: len(test)]).to(device).split(batch_size)
    with torch.no_grad():
        scores = torch.cat([model.score(*part.unbind(dim=1)) for part in parts]).double().cpu().numpy()
    return RankedTriples(test, scores, ranks[: len(test)], ranks[len(test) :] if inverse_triples else None)


def remark_on_candidates(test: np.ndarray) -> str | None:
    """Say where test triples (N, 3) look like candidates for one answer: their ranks pass over each other."""
    queries, counts = np.unique(np.unique(test, axis=0)[:, :2], axis=0, return_counts=True)
    if 2 * len(queries) > counts.sum():
        return None
    questions = f"{len(queries):,} question{'s' * (len(queries) > 1)} (head and relation)"
    return (
        f"{counts.sum():,} test triples ask {questions}: all count as known to be right, so that ranks pass over the "
        "others; candidates are not ranked against each other here"
    )


def choose_best(ranked: RankedTriples, number: int) -> np.ndarray:
    """Return the `number` best-ranked distinct triples, (number, 3).

    Raises InputError if there are fewer.
    """
    in_order = ranked.triples[ranked.best_first()]
    first = np.sort(np.unique(in_order, axis=0, return_index=True)[1])
    if len(first) < number:
        raise InputError(f"there are {len(first)} distinct test triples, fewer than the {number} best; ask for fewer")
    return in_order[first[:number]]


def metrics_of(ranked: RankedTriples) -> dict[str, dict[str, float]]:
    """Compute the metrics of each side that was ranked, and of both together."""
    sides = {"tails": ranked.tail_ranks}
    if ranked.head_ranks is not None:
        sides |= {"heads": ranked.head_ranks, "both": np.concatenate([ranked.tail_ranks, ranked.head_ranks])}
    return {side: ranking_metrics(torch.from_numpy(ranks)) for side, ranks in sides.items()}


def metrics_by_relation(ranked: RankedTriples, names: Names) -> list[dict[str, Any]]:
    """Compute the metrics of each relation, that of the most test triples first."""
    relations, counts = np.unique(ranked.triples[:, 1], return_counts=True)
    found = []
    for relation, count in sorted(zip(relations.tolist(), counts.tolist(), strict=True), key=lambda pair: -pair[1]):
        rows = ranked.triples[:, 1] == relation
        heads = None if ranked.head_ranks is None else ranked.head_ranks[rows]
        own = RankedTriples(ranked.triples[rows], ranked.scores[rows], ranked.tail_ranks[rows], heads)
        label, name = names.relations.label_of(relation), single_line(names.relation(relation))
        found.append({"relation": label, "relation_name": name, "triples": count, **metrics_of(own)})
    return found


def rows_of(ranked: RankedTriples, names: Names) -> Iterator[dict[str, Any]]:
    """Yield the test triples, best first, by COLUMNS; `head_rank` is None if heads were not ranked."""
    for row in ranked.best_first().tolist():
        head, relation, tail = ranked.triples[row].tolist()
        called = (single_line(name) for name in names.triple(head, relation, tail).values())
        labels = (names.entities.label_of(head), names.relations.label_of(relation), names.entities.label_of(tail))
        head_rank = None if ranked.head_ranks is None else float(ranked.head_ranks[row])
        values = (float(ranked.tail_ranks[row]), head_rank, float(ranked.scores[row]), *labels, *called)
        yield dict(zip(COLUMNS, values, strict=True))


def write_ranks(path: Path, ranked: RankedTriples, names: Names) -> None:
    """Write a table of all test triples, best first: ranks, score, labels and names."""
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write("\t".join(COLUMNS) + "\n")
        for row in rows_of(ranked, names):
            ranks = ("" if row[name] is None else f"{row[name]:.12g}" for name in COLUMNS[:2])
            rest = (row[name] for name in COLUMNS[3:])
            file.write("\t".join((*ranks, f"{row['score']:.6g}", *rest)) + "\n")


def metrics_as_text(ranked: RankedTriples, by_relation: list[dict[str, Any]]) -> str:
    """Lay out the metrics of each side, and of the relations if there are any; names stand last, as they are long."""
    members = ("mean_reciprocal_rank", "hits@1", "hits@3", "hits@10")

    def line(metrics: dict[str, float], name: str) -> str:
        values = " ".join(f"{metrics[member]:>8.4f}" for member in members)
        return f"{values} {metrics['mean_rank']:>10,.1f}  {name}"

    lines = [f"Filtered ranks of {len(ranked.triples):,} test triples:"]
    lines.append("     MRR   Hits@1   Hits@3  Hits@10  mean rank  asked for")
    lines += [line(metrics, side) for side, metrics in metrics_of(ranked).items()]
    if by_relation:
        sides = "heads and tails" if ranked.head_ranks is not None else "tails"
        lines.append(f"     MRR   Hits@1   Hits@3  Hits@10  mean rank  relation ({sides})")
    for relation in by_relation:
        name = f"{visible(relation['relation_name'])} ({relation['triples']:,} triples)"
        lines.append(line(relation.get("both", relation["tails"]), name))
    return "\n".join(lines)


def write_triple_ids(path: Path, triples: np.ndarray) -> None:
    """Write triples (N, 3) as lines of three ids, which `--test-triples` reads."""
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines("\t".join(map(str, triple)) + "\n" for triple in triples.tolist())

"""How well a checkpoint ranks each test triple, and which triples it ranks best.

`python -m conve_tracin.evaluation --help` tells the flags; the pipeline runs it between training and explaining.
"""

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from conve_tracin import cli
from conve_tracin.data.prepare import single_line
from conve_tracin.errors import InputError
from conve_tracin.files import atomic_write

if TYPE_CHECKING:
    from conve_tracin.data.names import Names
    from conve_tracin.model.conve import ConvE

logger = logging.getLogger(__name__)

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
    model: "ConvE", splits: tuple[np.ndarray, np.ndarray, np.ndarray], *, inverse_triples: bool, batch_size: int
) -> RankedTriples:
    """Rank the triples of the last of `splits` (train, valid, test), filtered against all three.

    Args:
        model: in eval mode.
        splits: (N, 3) ids each, relations as in the files.
        inverse_triples: whether the model has inverse relations, so that heads can be ranked too.
        batch_size: triples ranked at once; fewer where there are many entities.
    """
    import torch

    from conve_tracin.data.queries import examples_of, known_tails
    from conve_tracin.ranking import choose_batch_size, rank_triples

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


def write_ranks(path: Path, ranked: RankedTriples, names: "Names") -> None:
    """Write a table of all test triples, best first: ranks, score, labels and names."""
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write("\t".join(COLUMNS) + "\n")
        for row in ranked.best_first().tolist():
            head, relation, tail = ranked.triples[row].tolist()
            head_rank = "" if ranked.head_ranks is None else f"{ranked.head_ranks[row]:.12g}"
            called = (single_line(name) for name in names.triple(head, relation, tail).values())
            labels = (names.entities.label_of(head), names.relations.label_of(relation), names.entities.label_of(tail))
            values = (f"{ranked.tail_ranks[row]:.12g}", head_rank, f"{ranked.scores[row]:.6g}", *labels, *called)
            file.write("\t".join(values) + "\n")


def write_triple_ids(path: Path, triples: np.ndarray) -> None:
    """Write triples (N, 3) as lines of three ids, which `--test-triples` reads."""
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines("\t".join(map(str, triple)) + "\n" for triple in triples.tolist())


def build_parser() -> argparse.ArgumentParser:
    """Declare the command line."""
    parser = cli.make_parser("Rank every test triple with a native ConvE checkpoint, and choose the best-ranked.")
    parser.add_argument("--model-path", type=Path, required=True, metavar="CHECKPOINT", help="native checkpoint")
    for split in ("train", "valid", "test"):
        parser.add_argument(f"--{split}", type=Path, required=True, help=f"{split} triples")
    cli.add_mapping_arguments(parser)
    cli.add_name_arguments(parser)
    parser.add_argument("--output", "-o", type=Path, required=True, help="table of all test triples, best first")
    parser.add_argument("--best", type=cli.positive_int, default=5, help="how many of the best go to --best-output")
    parser.add_argument("--best-output", type=Path, help="the best-ranked test triples as ids, one a line")
    parser.add_argument("--batch-size", type=cli.positive_int, default=256, help="triples ranked at once, at most")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, …; auto takes a GPU where there is one")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Parse, rank, write."""
    args = build_parser().parse_args(argv)

    from conve_tracin.checkpoint.native import (
        build_model,
        load_checkpoint,
        require_matching_mappings,
        uses_inverse_triples,
    )
    from conve_tracin.data.names import read_names_from
    from conve_tracin.data.triples import read_triples
    from conve_tracin.device import choose_device
    from conve_tracin.files import require_usable_outputs

    mappings = (args.entity_to_id, args.relation_to_id, args.node_name_dict, args.edge_map)
    require_usable_outputs(
        {"--output": args.output, "--best-output": args.best_output},
        inputs=(args.model_path, args.train, args.valid, args.test, *mappings),
    )
    names = read_names_from(args)
    checkpoint = load_checkpoint(args.model_path)
    require_matching_mappings(checkpoint, names.entities, names.relations, source=args.model_path)
    model = build_model(checkpoint, source=args.model_path).to(choose_device(args.device)).eval()
    splits = tuple(
        read_triples(path, names.entities, names.relations, skip_unknown=args.skip_unknown)
        for path in (args.train, args.valid, args.test)
    )
    if remark := remark_on_candidates(splits[-1]):
        logger.info(remark)
    ranked = rank_triples_of(
        model,
        splits,
        inverse_triples=uses_inverse_triples(checkpoint),
        batch_size=args.batch_size,
    )
    write_ranks(args.output, ranked, names)
    print(f"Written: {args.output}, MRR of the tails {(1 / ranked.tail_ranks).mean():.4f}")
    if args.best_output is not None:
        write_triple_ids(args.best_output, choose_best(ranked, args.best))
        print(f"Written: {args.best_output}")


if __name__ == "__main__":
    cli.run(main)

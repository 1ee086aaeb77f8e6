#!/usr/bin/env python3
"""Rank every test triple with a native ConvE checkpoint: how good is the model, and which triples does it rank best?

Prints the metrics of each side and writes a table, best first, that the influence scripts read.
"""

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from conve_tracin import cli
from conve_tracin.commands import explain_command
from conve_tracin.files import require_usable_outputs, write_json

if TYPE_CHECKING:
    from conve_tracin.data.names import Names
    from conve_tracin.ranking.table import RankedTriples

logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """Declare the command line."""
    parser = cli.make_parser(__doc__)
    files = parser.add_argument_group("files")
    files.add_argument(
        "--model-path", type=Path, required=True, metavar="CHECKPOINT", help="checkpoint of train_pytorch.py"
    )
    files.add_argument("--train", type=Path, required=True, help="training triples: head<TAB>relation<TAB>tail")
    files.add_argument("--valid", type=Path, required=True, help="validation triples; ranks pass over them, too")
    files.add_argument("--test", type=Path, required=True, help="test triples, which are ranked")
    cli.add_mapping_arguments(files)
    cli.add_name_arguments(files)
    files.add_argument(
        "--output", "-o", type=Path, required=True,
        help="all test triples, best first: JSON with the metrics if it ends in .json, otherwise a table, which "
        "--test-triples of the influence scripts reads as it is",
    )  # fmt: skip
    files.add_argument("--best-output", type=Path, help="the best-ranked test triples as ids, one a line")
    ranking = parser.add_argument_group("ranking")
    ranking.add_argument("--best", type=cli.positive_int, default=5, help="how many of the best go to --best-output")
    ranking.add_argument("--by-relation", action="store_true", help="give the metrics of each relation, too")
    ranking.add_argument("--batch-size", type=cli.positive_int, default=256, help="triples ranked at once, at most")
    ranking.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, …; auto takes a GPU where there is one")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Parse, rank, write, and print the metrics and the next command."""
    args = build_parser().parse_args(argv)
    read_for_names = ("train", "entity_to_id", "relation_to_id", "node_name_dict", "edge_map")
    inputs = {name: getattr(args, name) for name in read_for_names}
    require_usable_outputs(
        {"--output": args.output, "--best-output": args.best_output},
        inputs=(args.model_path, args.valid, args.test, *inputs.values()),
    )
    with cli.importing():
        from conve_tracin.ranking import table

    ranked, names = rank(args)
    by_relation = table.metrics_by_relation(ranked, names) if args.by_relation else []
    best = None if args.best_output is None else table.choose_best(ranked, args.best)
    if args.output.suffix == ".json":
        relations = {"by_relation": by_relation} if args.by_relation else {}
        content = {"model_path": str(args.model_path), "metrics": table.metrics_of(ranked), **relations}
        write_json(args.output, {**content, "ranks": list(table.rows_of(ranked, names))})
    else:
        table.write_ranks(args.output, ranked, names)
    if best is not None:
        table.write_triple_ids(args.best_output, best)
    print(table.metrics_as_text(ranked, by_relation))
    print(f"Written: {args.output}, MRR of the tails {(1 / ranked.tail_ranks).mean():.4f}")
    if best is not None:
        print(f"Written: {args.best_output}")
    if args.output.suffix != ".json":
        number = min(args.best, len(ranked.triples))
        known = (args.valid, args.test)
        print(f"Next: {explain_command(args.model_path, inputs, ranks=args.output, known=known, number=number)}")


def rank(args: argparse.Namespace) -> "tuple[RankedTriples, Names]":
    """Read what the arguments name, and rank the test triples."""
    from conve_tracin.checkpoint.native import (
        load_checkpoint,
        require_matching_mappings,
        take_model,
        uses_inverse_triples,
    )
    from conve_tracin.compute.device import choose_device
    from conve_tracin.data.names import read_names_from
    from conve_tracin.data.triples import read_triples
    from conve_tracin.ranking import table

    names = read_names_from(args)
    checkpoint = load_checkpoint(args.model_path)
    require_matching_mappings(checkpoint, names.entities, names.relations, source=args.model_path)
    model = take_model(checkpoint, source=args.model_path).to(choose_device(args.device)).eval()
    splits = tuple(
        read_triples(path, names.entities, names.relations, skip_unknown=args.skip_unknown)
        for path in (args.train, args.valid, args.test)
    )
    if remark := table.remark_on_candidates(splits[-1]):
        logger.info(remark)
    inverse_triples = uses_inverse_triples(checkpoint)
    return table.rank_triples_of(model, splits, inverse_triples=inverse_triples, batch_size=args.batch_size), names


if __name__ == "__main__":
    cli.run(main)

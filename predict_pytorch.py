#!/usr/bin/env python3
"""Ask a model for candidates: the likeliest tails of (head, relation, ?), or heads of (?, relation, tail)."""

import argparse
from pathlib import Path

from conve_tracin import cli, settings
from conve_tracin.settings import PredictionOptions, TracInOptions

__getattr__ = cli.lazy_exports({"predict": "conve_tracin.prediction.predict"})


def build_parser() -> argparse.ArgumentParser:
    """Declare the command line."""
    parser = cli.make_parser(__doc__)
    files = parser.add_argument_group("files")
    files.add_argument(
        "--model-path", type=Path, required=True, metavar="CHECKPOINT",
        help="native, converted or PyKEEN's; a directory of a PyKEEN pipeline, or of checkpoints: the latest answers",
    )  # fmt: skip
    cli.add_mapping_arguments(files)
    cli.add_name_arguments(files)
    files.add_argument(
        "--trust-pickle", action="store_true",
        help="read PyKEEN's trained_model.pkl; unpickling runs code, so only from an origin that you trust",
    )  # fmt: skip
    for each in settings.pick(TracInOptions, "embedding_height", "embedding_width").values():
        cli.add_setting(files, each)
    files.add_argument(
        "--output", "-o", type=Path, required=True,
        help="a table (.tsv), which --test-triples of the influence scripts reads as it is, or JSON (.json)",
    )  # fmt: skip
    add_query_arguments(parser)
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, …; auto takes a GPU where there is one")
    return parser


def add_query_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what is asked, and which answers count."""
    asked = parser.add_argument_group(
        "what is asked", "ids, labels, or names of --node-name-dict and predicates of --edge-map, whatever their case"
    )
    asked.add_argument("--head", metavar="H", help="with --relation: which tails?")
    asked.add_argument("--relation", metavar="R", help="the relation of head and tail")
    asked.add_argument(
        "--tail", metavar="T", help="with --relation: which heads? Needs a model that was trained with inverse triples"
    )
    asked.add_argument(
        "--queries", type=Path, metavar="FILE", help="instead: a triple a line, tab-separated, with ? for what is asked"
    )
    cli.add_setting(asked, *settings.pick(TracInOptions, "given_as").values())
    answers = parser.add_argument_group("which answers")
    answers.add_argument(
        "--top-k", type=cli.positive_int, default=PredictionOptions.top_k, help="how many to list for each query"
    )
    answers.add_argument(
        "--known", type=Path, nargs="+", default=(), metavar="FILE",
        help="true triples, such as train, valid and test: they are left out, and ranks pass over them",
    )  # fmt: skip
    answers.add_argument("--keep-known", action="store_true", help="list them, too, and mark them")
    answers.add_argument(
        "--candidates", type=Path, metavar="FILE", help="rank these entities alone: a label, id or name a line"
    )
    answers.add_argument(
        "--candidate-category", metavar="CATEGORY",
        help="rank entities of this Biolink category alone, such as biolink:Drug, as --nodes lists it",
    )  # fmt: skip
    answers.add_argument("--nodes", type=Path, metavar="FILE", help="nodes.jsonl of the KGX graph")


def main(argv: list[str] | None = None) -> None:
    """Parse, ask, write."""
    args = build_parser().parse_args(argv)
    options = PredictionOptions(**cli.members_of(PredictionOptions, args))
    with cli.importing():
        from conve_tracin.prediction.predict import predict

    predict(options)


if __name__ == "__main__":
    cli.run(main)

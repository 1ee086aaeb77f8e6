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
    asked = parser.group(
        "what is asked", "ids, labels, or names of --node-name-dict and predicates of --edge-map, whatever their case"
    )
    cli.add_settings(parser, settings.with_flags(PredictionOptions, groups=["what is asked"]))
    cli.add_setting(asked, *settings.pick(TracInOptions, "given_as").values())
    cli.add_settings(parser, settings.with_flags(PredictionOptions, groups=["which answers"]))
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, …; auto takes a GPU where there is one")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Parse, ask, write."""
    args = build_parser().parse_args(argv)
    options = PredictionOptions(**cli.members_of(PredictionOptions, args))
    with cli.importing():
        from conve_tracin.prediction.predict import predict

    predict(options)


if __name__ == "__main__":
    cli.run(main)

#!/usr/bin/env python3
"""Trace predictions of any checkpoint, native or PyKEEN's, to the training triples behind them (TracIn)."""

import argparse
from pathlib import Path

from conve_tracin import cli, settings
from conve_tracin.settings import TracInOptions

__getattr__ = cli.lazy_exports({"run_tracin_analysis": "conve_tracin.explanation.explain"})


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; argparse prints one line and exits with code 2 if it is wrong."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.train is None:
        from conve_tracin.data.triples import find_pykeen_triples

        args.train = find_pykeen_triples(args.model_path[0])
        if args.train is None:
            parser.error("--train is required, except for the directory of a PyKEEN pipeline")
    missing = settings.missing_for_mode(args)
    if missing is not None:
        parser.error(missing)
    return args


def build_parser() -> argparse.ArgumentParser:
    """Declare the command line."""
    parser = cli.make_parser(__doc__)
    files = parser.group("files")
    files.add_argument(
        "--model-path", type=Path, nargs="+", required=True, metavar="CHECKPOINT",
        help="native, converted or PyKEEN's; a directory of a PyKEEN pipeline, or of checkpoint_epoch_N.pt; "
        "the influences of several checkpoints add up (TracInCP)",
    )  # fmt: skip
    files.add_argument(
        "--train", type=Path,
        help="training triples: head<TAB>relation<TAB>tail; may be left out for the directory of a PyKEEN pipeline",
    )  # fmt: skip
    tested = files.add_mutually_exclusive_group()
    for each in settings.pick(TracInOptions, "test", "test_triples").values():
        cli.add_setting(tested, each)
    cli.add_settings(parser, settings.pick(TracInOptions, "given_as"))
    cli.add_mapping_arguments(files, required=False)
    cli.add_name_arguments(files)
    cli.add_settings(parser, settings.pick(TracInOptions, "trust_pickle", "embedding_height", "embedding_width"))
    files.add_argument(
        "--output", "-o", type=Path, required=True, help="JSON file; a directory with --output-per-triple"
    )
    cli.add_settings(parser, settings.pick(TracInOptions, "output_per_triple"))
    files.add_argument(
        "--csv-output", type=Path, nargs="?", const=True, metavar="FILE",
        help="write a table, too; without FILE beside --output",
    )  # fmt: skip
    cli.add_settings(parser, settings.pick(TracInOptions, "nodes", "report", "known", "evidence", "reasons", "trapi"))
    groups = ("what to analyse", *settings.SHARED_GROUPS, "engine")
    cli.add_settings(parser, settings.with_flags(TracInOptions, settings.AcceptedOptions, groups=groups))
    return parser


def main(argv: list[str] | None = None) -> None:
    """Parse, analyse, write."""
    args = parse_args(argv)
    with cli.importing():
        from conve_tracin.compute.parallel import processes, run_on_all_gpus_if_asked

    run_on_all_gpus_if_asked(args)
    with cli.importing():
        from conve_tracin.explanation.explain import explain
        from conve_tracin.explanation.scripts import RUN_TRACIN

    with processes():
        explain(TracInOptions(**cli.members_of(TracInOptions, args)), RUN_TRACIN)


if __name__ == "__main__":
    cli.run(main)

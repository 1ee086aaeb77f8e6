#!/usr/bin/env python3
"""Check explanations by training again: is the prediction lost without its strongest proponents?"""

import argparse
from pathlib import Path

from conve_tracin import cli, settings
from conve_tracin.settings import VerificationOptions


def build_parser() -> argparse.ArgumentParser:
    """Declare the command line."""
    parser = cli.make_parser(__doc__)
    files = parser.group("files")
    files.add_argument(
        "--influences", type=Path, nargs="+", required=True, metavar="FILE",
        help="JSON outputs of tracin_pytorch.py or run_tracin.py",
    )  # fmt: skip
    files.add_argument(
        "--model-path", type=Path, required=True, metavar="CHECKPOINT",
        help="the checkpoint of train_pytorch.py that was explained; its settings are those of the trainings",
    )  # fmt: skip
    files.add_argument("--train", type=Path, required=True, help="training triples: head<TAB>relation<TAB>tail")
    cli.add_mapping_arguments(files)
    cli.add_name_arguments(files)
    files.add_argument(
        "--known", type=Path, nargs="+", default=(), metavar="FILE",
        help="further true triples, such as valid and test, which ranks pass over",
    )  # fmt: skip
    files.add_argument("--output", "-o", type=Path, required=True, help="JSON file")
    files.add_argument("--report", type=cli.file_to_write, metavar="FILE.html", help="also write a self-contained page")
    cli.add_settings(parser, settings.with_flags(VerificationOptions))
    return parser


def main(argv: list[str] | None = None) -> None:
    """Parse, train, write."""
    args = build_parser().parse_args(argv)
    options = VerificationOptions(**cli.members_of(VerificationOptions, args))
    from conve_tracin.verification.verify import verify

    verify(options)


if __name__ == "__main__":
    cli.run(main)

#!/usr/bin/env python3
"""Convert ConvE checkpoints between this project's format and PyKEEN's, one file or a directory of them."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from conve_tracin import cli
from conve_tracin.errors import InputError
from conve_tracin.files import require_usable_outputs

if TYPE_CHECKING:
    from conve_tracin.checkpoint.pykeen import Conversion

__getattr__ = cli.lazy_exports(
    {
        "convert_pytorch_to_pykeen_state_dict": "conve_tracin.checkpoint.conversion",
        "convert_pykeen_to_native_state_dict": "conve_tracin.checkpoint.conversion",
    }
)


def build_parser() -> argparse.ArgumentParser:
    """Declare the command line."""
    parser = cli.make_parser(__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", type=Path, help="checkpoint to convert; needs --output")
    source.add_argument("--input-dir", type=Path, help="directory of checkpoints to convert; needs --output-dir")
    parser.add_argument("--output", type=Path, help="file to write")
    parser.add_argument("--output-dir", type=Path, help="gets NAME_pykeen.pt, or NAME_native.pt, for each NAME.pt")
    parser.add_argument("--pattern", default="checkpoint_epoch_*.pt", help="which files of --input-dir")
    parser.add_argument(
        "--to", choices=("pykeen", "native"), default="pykeen",
        help="pykeen: from a checkpoint of train_pytorch.py; native: from a converted file, a state dict of "
        "PyKEEN's ConvE, or a checkpoint of PyKEEN's training loop",
    )  # fmt: skip
    parser.add_argument(
        "--verify", action="store_true", help="compare the scores of both models; write nothing where they differ"
    )
    parser.add_argument("--force", action="store_true", help="overwrite outputs that exist")
    parser.add_argument("--embedding-height", type=cli.positive_int, help="where PyKEEN's weights do not tell it")
    parser.add_argument("--embedding-width", type=cli.positive_int, help="where PyKEEN's weights do not tell it")
    parser.add_argument(
        "--trust-pickle", action="store_true", help="also read PyKEEN's trained_model.pkl, which can run code"
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Convert what the command line names; exit code 1 where a file of several, or a verification, failed."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.input is not None and (args.output is None or args.output_dir is not None):
        parser.error("--input needs --output, and no --output-dir")
    if args.input_dir is not None and (args.output_dir is None or args.output is not None):
        parser.error("--input-dir needs --output-dir, and no --output")
    options = {
        "to": args.to,
        "verify": args.verify,
        "trust_pickle": args.trust_pickle,
        "embedding_height": args.embedding_height,
        "embedding_width": args.embedding_width,
    }
    if args.input is None:
        succeeded = convert_directory(
            args.input_dir, args.output_dir, pattern=args.pattern, force=args.force, options=options
        )
    else:
        succeeded = convert_one(args.input, args.output, force=args.force, options=options)
    if not succeeded:
        sys.exit(1)


def convert_one(source: Path, target: Path, *, force: bool, options: dict) -> bool:
    """Convert a single file and print what was done; return whether its verification passed."""
    from conve_tracin.checkpoint.pykeen import VerificationError, convert_file

    require_usable_outputs({"--output": target})
    if target.exists() and not force:
        raise InputError(f"{target}: exists already; give --force to overwrite it")
    try:
        print(describe(source, target, convert_file(source, target, **options)))
    except VerificationError as error:
        print(f"{Path(sys.argv[0]).name}: verification failed: {error}", file=sys.stderr)
        return False
    return True


def convert_directory(input_dir: Path, output_dir: Path, *, pattern: str, force: bool, options: dict) -> bool:
    """Convert the files that match and print a line for each and a summary; return whether none failed.

    Outputs that exist are kept, unless `force` is given, and outputs of an earlier run are no inputs of this one.
    """
    from conve_tracin.checkpoint.pykeen import VerificationError, convert_file

    suffix = f"_{options['to']}"
    found = [path for path in input_dir.glob(pattern) if path.is_file() and not path.stem.endswith(suffix)]
    if not found:
        raise InputError(f"{input_dir}: no file matches {pattern!r}; check --input-dir and --pattern")
    require_usable_outputs({}, directory=("--output-dir", output_dir))
    counts = {"converted": 0, "kept": 0, "failed": 0}
    # Shorter names first puts epoch 2 before epoch 10.
    for source in sorted(found, key=lambda path: (len(path.name), path.name)):
        target = output_dir / f"{source.stem}{suffix}.pt"
        if target.is_file() and not force:
            print(f"{target}: kept, it exists already (--force overwrites it)")
            counts["kept"] += 1
            continue
        try:
            print(describe(source, target, convert_file(source, target, **options)), flush=True)
            counts["converted"] += 1
        except (InputError, VerificationError) as error:
            print(f"failed: {error}", file=sys.stderr)
            counts["failed"] += 1
    print(", ".join(f"{number} {what}" for what, number in counts.items()))
    return counts["failed"] == 0


def describe(source: Path, target: Path, conversion: "Conversion") -> str:
    """Say in a line what became of a file."""
    config = conversion.config
    facts = [
        f"epoch {'unknown' if conversion.epoch is None else conversion.epoch}",
        f"{config.num_entities:,} entities",
        f"{config.num_relations:,} relation rows",
        f"{'with' if conversion.keeps_optimizer else 'without'} optimizer state",
    ]
    if conversion.score_difference is not None:
        facts.append(f"verified: scores differ by at most {conversion.score_difference:.1e}")
    return f"{source} -> {target}: {', '.join(facts)}"


if __name__ == "__main__":
    cli.run(main)

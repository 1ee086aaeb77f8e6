#!/usr/bin/env python3
"""Rank every test triple with a native ConvE checkpoint: metrics, and a table of the ranks, best first."""

import argparse

from conve_tracin import cli


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of `python -m conve_tracin.evaluation`, which does the same."""
    from conve_tracin import evaluation

    return evaluation.build_parser()


def main(argv: list[str] | None = None) -> None:
    """Parse, rank, write, and print the metrics and the next command."""
    from conve_tracin import evaluation

    evaluation.main(argv)


if __name__ == "__main__":
    cli.run(main)

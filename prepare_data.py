#!/usr/bin/env python3
"""Write the input files of training and influence from a PyKEEN dataset, files of triples or a KGX graph."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from conve_tracin import cli, settings
from conve_tracin.errors import InputError
from conve_tracin.files import nearest_directory, require_usable_outputs
from conve_tracin.settings import PrepareSettings

if TYPE_CHECKING:
    from conve_tracin.data.splits import SplitGraph


def build_parser() -> argparse.ArgumentParser:
    """Declare the command line."""
    parser = cli.make_parser(__doc__)
    declared = settings.with_flags(PrepareSettings)
    sources = parser.group("graph").add_mutually_exclusive_group(required=True)
    for name in ("dataset", "triples", "nodes"):
        cli.add_setting(sources, declared.pop(name))
    parser.group("graph").add_argument("--output-dir", "-o", type=Path, required=True, help="where the files go")
    cli.add_settings(parser, declared)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Parse, read, write, and say what was written."""
    parser = build_parser()
    args = parser.parse_args(argv)
    require_matching_flags(args, parser)
    require_usable_outputs({}, directory=("--output-dir", args.output_dir))

    from conve_tracin.data.prepare import summary, write_graph

    if args.nodes is not None:
        graph = prepare_kgx(args)
    else:
        graph = read_graph(args)
        write_graph(graph, args.output_dir)
    print(summary(graph, args.output_dir))


def require_matching_flags(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Stop if --nodes lacks --edges, or a flag is given without the source that it is for."""
    if args.triples_format is not None and args.triples is None:
        parser.error("--triples-format goes with --triples")
    if args.nodes is not None:
        if args.edges is None:
            parser.error("--nodes goes with --edges")
        if args.equivalents is not None and args.drugmechdb is None:
            parser.error("--equivalents goes with --drugmechdb")
        return
    for name, declared in settings.with_flags(PrepareSettings, groups=["KGX graph"]).items():
        if getattr(args, name) != declared.default:
            parser.error(f"{settings.flag_of(name)} goes with --nodes and --edges")


def prepare_kgx(args: argparse.Namespace) -> "SplitGraph":
    """Read a KGX graph, write its files and print what was kept; raises InputError where a line is wrong."""
    from conve_tracin.data.kgx.drugmechdb import find_reasons
    from conve_tracin.data.kgx.evidence_writer import open_evidence_store
    from conve_tracin.data.kgx.graph import KGX_FILES, describe, read_kgx, write_kgx
    from conve_tracin.data.kgx.provenance import EdgeFilters
    from conve_tracin.data.prepare import require_inputs_kept

    inputs = (args.nodes, args.edges, args.drugmechdb, args.equivalents)
    require_inputs_kept(args.output_dir, [path for path in inputs if path is not None], more=KGX_FILES)
    filters = EdgeFilters(
        *(tuple(names or ()) for names in (args.exclude_source, args.knowledge_level, args.agent_type))
    )  # fmt: skip
    with open_evidence_store(nearest_directory(args.output_dir)) as evidence:
        kgx = read_kgx(
            args.nodes,
            args.edges,
            style=args.style,
            fractions={"valid": args.valid_fraction, "test": args.test_fraction},
            test_predicate=args.test_predicate,
            random_seed=args.random_seed,
            together=args.hold_out_pairs,
            keep_negated=args.negated == "keep",
            skip_malformed=args.skip_malformed,
            skip_unknown=args.skip_unknown,
            filters=filters,
            min_degree=args.min_degree,
            evidence=evidence,
        )
        reasons = None
        if args.drugmechdb is not None:
            predicates = {label: json.loads(key)["predicate"] for key, label in kgx.edge_map.items()}
            reasons = find_reasons(
                args.drugmechdb, kgx.graph, predicates, nodes=args.nodes, equivalents=args.equivalents
            )
        print(describe(write_kgx(kgx, args.output_dir, reasons)))
    return kgx.graph


def read_graph(args: argparse.Namespace) -> "SplitGraph":
    """Read the source that the arguments name; raises InputError where it is malformed."""
    from conve_tracin.data import prepare as preparation
    from conve_tracin.data.splits import SPLITS, without_held_out_pairs

    fractions = {"valid": args.valid_fraction, "test": args.test_fraction}
    if args.dataset is not None:
        graph = preparation.graph_from_dataset(args.dataset, fractions=fractions, random_seed=args.random_seed)
        return without_held_out_pairs(graph) if args.hold_out_pairs else graph
    paths = args.triples
    if len(paths) == 1 and paths[0].is_dir():
        paths = list(preparation.split_files(paths[0], triples_format=args.triples_format).values())
    preparation.require_inputs_kept(args.output_dir, paths)
    if len(paths) == 3:
        graph = preparation.graph_from_splits(dict(zip(SPLITS, paths, strict=True)), triples_format=args.triples_format)
        return without_held_out_pairs(graph) if args.hold_out_pairs else graph
    if len(paths) == 1:
        return preparation.graph_from_file(
            paths[0],
            fractions=fractions,
            random_seed=args.random_seed,
            triples_format=args.triples_format,
            together=args.hold_out_pairs,
        )
    raise InputError(f"--triples: got {len(paths)} files; give one, or TRAIN VALID TEST")


if __name__ == "__main__":
    cli.run(main)

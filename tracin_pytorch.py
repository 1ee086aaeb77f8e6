#!/usr/bin/env python3
"""Trace predictions of a native ConvE checkpoint to the training triples behind them (TracIn)."""

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from conve_tracin import cli
from conve_tracin.options import DEFAULT_LEARNING_RATE, GAUSS_NEWTON, gauss_newton_settings_without_effect

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from conve_tracin.influence.tracing import Trace, TracedCheckpoint
    from conve_tracin.journal import Journal
    from conve_tracin.names import Names

__getattr__ = cli.lazy_exports({"TracInAnalyzerPyTorch": "conve_tracin.influence.analyzer"})


def build_parser() -> argparse.ArgumentParser:
    """Declare the command line."""
    parser = cli.make_parser(__doc__)
    files = parser.add_argument_group("files")
    files.add_argument(
        "--model-path", type=Path, nargs="+", required=True, metavar="CHECKPOINT",
        help="checkpoints of train_pytorch.py; the influences of several add up (TracInCP)",
    )  # fmt: skip
    files.add_argument("--train", type=Path, required=True, help="training triples: head<TAB>relation<TAB>tail")
    cli.add_mapping_arguments(files)
    cli.add_name_arguments(files)
    wanted = files.add_mutually_exclusive_group(required=True)
    wanted.add_argument("--test-triple", nargs=3, metavar=("H", "R", "T"), help="ids, or labels where not integers")
    wanted.add_argument("--test-triples", type=Path, metavar="FILE", help="one test triple a line; needs --output-dir")
    files.add_argument("--output", type=Path, help="JSON file for --test-triple")
    files.add_argument("--output-dir", type=Path, help="directory for --test-triples: triple_H_R_T.json each")
    cli.add_report_argument(files)
    cli.add_influence_arguments(parser)
    parser.add_argument(
        "--engine", choices=("forward", "reference"), default="forward",
        help="how the same scores are computed: fast, or by the definition's backward loop",
    )  # fmt: skip
    parser.add_argument("--no-cache-test-gradients", action="store_true", help="keep no gradients of test triples")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Parse, trace, write JSON and print a table."""
    parser = build_parser()
    args = parser.parse_args(argv)
    require_consistent(parser, args)

    from conve_tracin.influence import distributed

    with distributed.processes():
        run(args)


def require_consistent(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with one line where flags do not go together."""
    if (args.output is None) == (args.test_triples is None):
        parser.error("--test-triple goes with --output, --test-triples with --output-dir")
    if (args.output_dir is None) != (args.test_triples is None):
        parser.error("--test-triple goes with --output, --test-triples with --output-dir")
    if args.report is not None and args.report == args.output:
        parser.error("--report and --output name the same file")


def run(args: argparse.Namespace) -> None:
    """Do the work; under torchrun together with the other processes."""
    from conve_tracin.files import write_json
    from conve_tracin.influence import distributed
    from conve_tracin.influence.resuming import resume_traces
    from conve_tracin.influence.summary import SummarySettings
    from conve_tracin.influence.tracing import trace
    from conve_tracin.report.formats import trace_as_json, trace_as_table
    from conve_tracin.triples import read_triples

    report_settings_without_effect(args)
    names = cli.read_names_from(args)
    test_triples = read_wanted_triples(args, names)
    learning_rates = choose_learning_rates(args)
    training_triples = read_triples(args.train, names.entities, names.relations, skip_unknown=args.skip_unknown)

    def load(path: Path) -> "TracedCheckpoint":
        return load_traced_checkpoint(path, args, names=names, learning_rate=learning_rates[path])

    summary = None if args.report is None else SummarySettings.of(names)

    def trace_rest(rest: "np.ndarray") -> "Iterator[Trace]":
        return trace(
            load, args.model_path, rest, training_triples,
            top_k=args.top_k, batch_size=args.batch_size, summary=summary,
        )  # fmt: skip

    if not distributed.is_main():
        list(trace_rest(None))
        return
    rates = list(learning_rates.values())
    method: dict[str, str | float] = {"method": args.method}
    if args.method == GAUSS_NEWTON:
        method["damping"] = args.damping
    journal = open_journal(args, learning_rates=rates, arrays=[training_triples, test_triples])
    reported = []
    for result in resume_traces(journal, test_triples, trace_rest):
        output = args.output or args.output_dir / "triple_{}_{}_{}.json".format(*result.test_triple)
        content = trace_as_json(
            result,
            names,
            top_k=args.top_k,
            learning_rate=rates[0] if len(rates) == 1 else rates,
            method=method | {"checkpoints": [str(path) for path in args.model_path]},
        )
        write_json(output, content)
        print(trace_as_table(result, names))
        print(f"Written: {output}")
        if args.report is not None:
            reported.append(result)
    if args.report is not None:
        write_report(args, reported, names, learning_rates=learning_rates)
    if journal is not None:
        journal.remove()


def write_report(
    args: argparse.Namespace, traces: "list[Trace]", names: "Names", *, learning_rates: dict[Path, float]
) -> None:
    """Write the page of `--report`."""
    from conve_tracin.report import page

    computation = page.describe_computation(
        method=args.method, checkpoints=learning_rates, train=args.train, settings=page.settings_of(args)
    )
    page.write_report(args.report, traces, names, computation)
    print(f"Written: {args.report}")


def open_journal(
    args: argparse.Namespace, *, learning_rates: list[float], arrays: "list[np.ndarray]"
) -> "Journal | None":
    """Open what a killed run over many test triples has left; None for a single one."""
    from conve_tracin.journal import Journal, digest_of

    if args.output_dir is None:
        return None
    settings = {name: value for name, value in vars(args).items() if name not in ("output_dir", "debug")}
    digest = digest_of(settings=settings | {"learning_rates": learning_rates}, files=args.model_path, arrays=arrays)
    return Journal(args.output_dir / "tracin.unfinished", digest)


def read_wanted_triples(args: argparse.Namespace, names: "Names") -> "np.ndarray":
    """Read the test triples (n, 3) from the command line or from their file."""
    import numpy as np

    from conve_tracin.triples import read_test_triples, resolve_triple

    if args.test_triples is not None:
        return read_test_triples(args.test_triples, names.entities, names.relations)
    return np.array([resolve_triple(args.test_triple, names.entities, names.relations)])


def choose_learning_rates(args: argparse.Namespace) -> dict[Path, float]:
    """Give each checkpoint its η: the one on the command line, else its own where there are several."""
    from conve_tracin.checkpoint import load_checkpoint

    if args.learning_rate is not None or len(args.model_path) == 1:
        return dict.fromkeys(args.model_path, args.learning_rate or DEFAULT_LEARNING_RATE)
    return {path: load_checkpoint(path).get("learning_rate", DEFAULT_LEARNING_RATE) for path in args.model_path}


def load_traced_checkpoint(
    path: Path, args: argparse.Namespace, *, names: "Names", learning_rate: float
) -> "TracedCheckpoint":
    """Load a native checkpoint and put the chosen engine on it."""
    from conve_tracin.checkpoint import build_model, load_checkpoint, require_matching_mappings, uses_inverse_triples
    from conve_tracin.influence.analyzer import TracInAnalyzerPyTorch, TracInReferencePyTorch
    from conve_tracin.influence.loading import gauss_newton_analyzer
    from conve_tracin.influence.tracing import TracedCheckpoint

    checkpoint = load_checkpoint(path)
    model = build_model(checkpoint, source=path).to(cli.choose_device(args.device))
    require_matching_mappings(checkpoint, names.entities, names.relations, source=path)
    if args.method == GAUSS_NEWTON:
        return TracedCheckpoint(
            gauss_newton_analyzer(checkpoint, model, damping=args.damping), 1 / len(args.model_path)
        )
    analyzer_type = TracInAnalyzerPyTorch if args.engine == "forward" else TracInReferencePyTorch
    analyzer = analyzer_type(
        model,
        use_last_layers_only=args.use_last_layers_only,
        num_last_layers=args.num_last_layers,
        cache_test_gradients=not args.no_cache_test_gradients,
        use_mixed_precision=args.use_mixed_precision,
        inverse_triples=uses_inverse_triples(checkpoint),
    )
    return TracedCheckpoint(analyzer, learning_rate)


def report_settings_without_effect(args: argparse.Namespace) -> None:
    """Say once which given flags change nothing here."""
    logger = logging.getLogger(__name__)
    if args.method == GAUSS_NEWTON:
        for message in gauss_newton_settings_without_effect(args):
            logger.info(message)
    if args.use_gradient_checkpointing:
        logger.info("--use-gradient-checkpointing has no effect: no activations are kept for a backward pass")
    if args.no_cache_test_gradients and args.engine == "forward":
        logger.info("--no-cache-test-gradients has no effect: each test gradient is needed, and computed, once")
    if args.use_mixed_precision and args.engine == "reference":
        logger.info("--use-mixed-precision has no effect on the reference engine, which defines the exact scores")


if __name__ == "__main__":
    cli.run(main)

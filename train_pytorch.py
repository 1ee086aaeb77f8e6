#!/usr/bin/env python3
"""Train ConvE on a knowledge graph: triples in, checkpoints and ranking metrics out."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from conve_tracin import cli
from conve_tracin.files import require_usable_outputs

if TYPE_CHECKING:
    from conve_tracin.training.loop import TrainingData

logger = logging.getLogger(__name__)

__getattr__ = cli.lazy_exports(
    {"ConvE": "conve_tracin.model.conve", "compute_loss_efficient": "conve_tracin.model.loss"}
)


def build_parser() -> argparse.ArgumentParser:
    """Declare the command line."""
    parser = cli.make_parser(__doc__)
    files = parser.add_argument_group("files")
    files.add_argument("--train", type=Path, required=True, help="training triples: head<TAB>relation<TAB>tail")
    files.add_argument("--valid", type=Path, required=True, help="validation triples; they choose the best model")
    files.add_argument("--test", type=Path, required=True, help="test triples, ranked once at the end")
    cli.add_mapping_arguments(files)
    files.add_argument("--output-dir", "-o", type=Path, required=True, help="where all results go")
    files.add_argument("--checkpoint-dir", type=Path, help="where checkpoints go (default: OUTPUT_DIR/checkpoints)")
    files.add_argument(
        "--resume-from-checkpoint", type=Path, metavar="FILE",
        help="go on from this checkpoint_epoch_N.pt; auto takes the newest whole one, or starts anew without one",
    )  # fmt: skip

    model = parser.add_argument_group("model")
    model.add_argument("--embedding-dim", type=cli.positive_int, default=200, help="height × width")
    model.add_argument("--embedding-height", type=cli.positive_int, default=10, help="rows of an embedding's image")
    model.add_argument("--embedding-width", type=cli.positive_int, default=20, help="columns of that image")
    model.add_argument("--output-channels", type=cli.positive_int, default=32, help="feature maps")
    model.add_argument("--kernel-height", type=cli.positive_int, default=3, help="rows of the convolution kernel")
    model.add_argument("--kernel-width", type=cli.positive_int, default=3, help="columns of the kernel")
    model.add_argument("--entity-bias", action="store_true", help="add a trained bias to each entity's scores")
    model.add_argument("--input-dropout", type=cli.fraction, default=0.2, help="dropout on the input image")
    model.add_argument("--feature-map-dropout", type=cli.fraction, default=0.2, help="dropout of whole feature maps")
    model.add_argument("--output-dropout", type=cli.fraction, default=0.3, help="dropout on the query vector")

    training = parser.add_argument_group("training")
    training.add_argument("--num-epochs", type=cli.positive_int, default=100, help="passes over the training set")
    training.add_argument("--batch-size", type=cli.positive_int, default=256, help="queries in a batch")
    training.add_argument("--learning-rate", type=cli.positive_float, default=0.001, help="of the optimizer")
    training.add_argument(
        "--lr-scheduler", choices=("none", "exponential", "plateau"), default="exponential",
        help="multiply the rate by --lr-decay never, each epoch, or when the validation MRR no longer rises",
    )  # fmt: skip
    training.add_argument("--lr-decay", type=cli.positive_float, default=1.0, help="factor of the rate; 1 keeps it")
    training.add_argument(
        "--lr-patience", type=cli.non_negative_int, default=2,
        help="evaluations without a better validation MRR that --lr-scheduler plateau waits",
    )  # fmt: skip
    training.add_argument("--optimizer", choices=("adam", "adagrad"), default="adam", help="how to take a step")
    training.add_argument(
        "--weight-averaging", type=cli.fraction, default=0.0,
        help="rank and keep a moving average of the weights, of which this share stays at each batch (0.999, say)",
    )  # fmt: skip
    training.add_argument("--weight-decay", type=cli.non_negative_float, default=0.0, help="factor of the L2 penalty")
    training.add_argument(
        "--loss", choices=("bce", "ce"), default="bce",
        help="binary cross-entropy of each entity, or softmax cross-entropy over all",
    )  # fmt: skip
    training.add_argument("--label-smoothing", type=cli.fraction, default=0.1, help="share of each label spread out")
    training.add_argument(
        "--training-approach", choices=("1vsall", "kvsall"), default="1vsall",
        help="one target for each triple, or all tails of each (head, relation) at once",
    )  # fmt: skip
    training.add_argument(
        "--query-weights", choices=("equal", "tails"), default="equal",
        help="of kvsall: each query counts alike, or as often as it has tails, as 1vsall has it",
    )  # fmt: skip
    training.add_argument(
        "--tails-per-visit", type=cli.non_negative_int, default=16,
        help="of --query-weights tails: visit a query once an epoch for every so many of its tails, at most 256 times, "
        "each time with all of them and a part of its weight; 0: once",
    )  # fmt: skip
    training.add_argument("--inverse-triples", action="store_true", help="also train, and rank by, (t, inverse r, h)")
    training.add_argument(
        "--early-stopping-patience", type=cli.non_negative_int, default=0,
        help="stop after this many evaluations without a better validation MRR; 0 never stops",
    )  # fmt: skip
    training.add_argument("--eval-frequency", type=cli.positive_int, default=1, help="epochs between evaluations")
    training.add_argument("--checkpoint-frequency", type=cli.positive_int, default=2, help="epochs between checkpoints")
    training.add_argument("--random-seed", type=cli.non_negative_int, default=42, help="of weights, order and dropout")

    machine = parser.add_argument_group("machine")
    machine.add_argument("--use-mixed-precision", action="store_true", help="bfloat16 or float16 where it is safe")
    machine.add_argument("--use-gradient-checkpointing", action="store_true", help="less memory, more computing")
    machine.add_argument(
        "--disable-memory-cleanup", action="store_true", help="keep a GPU's cached memory after each epoch"
    )
    machine.add_argument(
        "--use-torch-compile",
        action="store_true",
        help="compile the loss and, on a GPU, the encoder (needs a C++ compiler)",
    )
    machine.add_argument("--auto-batch-size", action="store_true", help="halve batches that do not fit into memory")
    machine.add_argument("--no-gpu", action="store_true", help="train on the CPU even where there is a GPU")
    machine.add_argument(
        "--num-workers", type=cli.non_negative_int, default=4,
        help="no effect: batches are cut from tensors in memory, so there is nothing to load beside training",
    )  # fmt: skip
    return parser


def main(argv: list[str] | None = None) -> None:
    """Parse, train, and print the test metrics."""
    parser = build_parser()
    args = parser.parse_args(argv)
    from conve_tracin.parallel import processes

    with processes():
        run(args, parser)


def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Train as the arguments say, and print the test metrics."""
    from conve_tracin import parallel
    from conve_tracin.device import choose_device
    from conve_tracin.model.conve import ConvEConfig
    from conve_tracin.report.charts import write_training_curves
    from conve_tracin.settings import TrainingConfig
    from conve_tracin.training.loop import OUTPUT_FILES, keep_freed_memory, train

    require_outputs(args, OUTPUT_FILES)
    device = choose_device("cpu" if args.no_gpu else "auto")
    report_settings_without_effect(args, parser, device=device)
    keep_freed_memory(device)
    results = train(
        read_data(args),
        TrainingConfig(**cli.members_of(TrainingConfig, args)),
        model_sizes=cli.members_of(ConvEConfig, args),
        output_dir=args.output_dir,
        checkpoint_dir=checkpoint_dir_of(args),
        resume_from=parallel.broadcast(choose_checkpoint(args) if parallel.is_main_process() else None),
        device=device,
        clean_memory=not args.disable_memory_cleanup,
        draw_curves=write_training_curves,
    )
    if not parallel.is_main_process():
        return
    print(f"Test metrics ({results['ranked']}, filtered), best model of epoch {results['epoch']}:")
    for name in ("mean_reciprocal_rank", "hits@1", "hits@3", "hits@5", "hits@10", "mean_rank"):
        print(f"  {name:<21} {results[name]:.4f}")
    print(f"Written to {args.output_dir}:")
    print(f"  {', '.join(OUTPUT_FILES)}")
    print(f"  and checkpoints to {checkpoint_dir_of(args)}")


def require_outputs(args: argparse.Namespace, names: Sequence[str]) -> None:
    """Raise InputError where the files of these names, or checkpoints, cannot be written or would replace an input."""
    require_usable_outputs(
        {f"--output-dir (for {name})": args.output_dir / name for name in names},
        directory=("--checkpoint-dir", checkpoint_dir_of(args)),
        inputs=(args.train, args.valid, args.test, args.entity_to_id, args.relation_to_id),
    )


def checkpoint_dir_of(args: argparse.Namespace) -> Path:
    """Return where checkpoints go."""
    return args.checkpoint_dir or args.output_dir / "checkpoints"


def choose_checkpoint(args: argparse.Namespace) -> Path | None:
    """Return the checkpoint to resume from; "auto" is the newest whole one. None starts anew."""
    from conve_tracin.training.resume import newest_checkpoint

    if args.resume_from_checkpoint != Path("auto"):
        return args.resume_from_checkpoint
    newest = newest_checkpoint(checkpoint_dir_of(args))
    if newest is None:
        logger.info("no whole checkpoint in %s: training starts anew", checkpoint_dir_of(args))
    return newest


def read_data(args: argparse.Namespace) -> "TrainingData":
    """Read mappings and splits; raises InputError with file and line."""
    from conve_tracin.data.triples import read_triples
    from conve_tracin.data.vocabulary import read_vocabulary
    from conve_tracin.training.loop import TrainingData

    entities = read_vocabulary(args.entity_to_id, "entity")
    relations = read_vocabulary(args.relation_to_id, "relation")
    splits = (
        read_triples(path, entities, relations, skip_unknown=args.skip_unknown)
        for path in (args.train, args.valid, args.test)
    )
    return TrainingData(
        *splits,
        num_entities=len(entities),
        num_relations=len(relations),
        mapping_digest={"entity": entities.digest(), "relation": relations.digest()},
    )


def report_settings_without_effect(args: argparse.Namespace, parser: argparse.ArgumentParser, *, device: str) -> None:
    """Say once which given flags change nothing here."""
    from conve_tracin import parallel

    if args.num_workers != parser.get_default("num_workers"):
        logger.info("--num-workers has no effect: batches are cut from tensors in memory")
    if args.lr_patience != parser.get_default("lr_patience") and args.lr_scheduler != "plateau":
        logger.info("--lr-patience has no effect without --lr-scheduler plateau")
    if args.lr_decay != parser.get_default("lr_decay") and args.lr_scheduler == "none":
        logger.info("--lr-decay has no effect with --lr-scheduler none")
    if args.query_weights != parser.get_default("query_weights") and args.training_approach == "1vsall":
        logger.info("--query-weights has no effect with --training-approach 1vsall: each of its queries has one tail")
    if args.tails_per_visit != parser.get_default("tails_per_visit") and (
        args.query_weights != "tails" or args.training_approach == "1vsall"
    ):
        logger.info("--tails-per-visit has no effect without --training-approach kvsall and --query-weights tails")
    if args.use_torch_compile and device != "cpu":
        if args.use_gradient_checkpointing:
            logger.info("--use-torch-compile has no effect on the encoder together with --use-gradient-checkpointing")
        elif parallel.world_size() > 1:
            logger.info("--use-torch-compile has no effect on the encoder with several GPUs: BatchNorm is synchronized")
    if args.auto_batch_size and parallel.world_size() > 1:
        logger.info("--auto-batch-size has no effect with several processes: one cannot halve a batch of all")
    if args.disable_memory_cleanup and device == "cpu":
        logger.info("--disable-memory-cleanup has no effect on the CPU, which caches no memory between batches")


if __name__ == "__main__":
    cli.run(main)

#!/usr/bin/env python3
"""Train ConvE on a knowledge graph: triples in, checkpoints and ranking metrics out."""

import argparse
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from conve_tracin import cli, settings
from conve_tracin.commands import rank_command
from conve_tracin.files import require_usable_outputs
from conve_tracin.settings import ConvEConfig, TrainingConfig, TrainingMachine

if TYPE_CHECKING:
    from conve_tracin.training.run import TrainingData

logger = logging.getLogger(__name__)

__getattr__ = cli.lazy_exports(
    {"ConvE": "conve_tracin.model.conve", "compute_loss_efficient": "conve_tracin.model.loss"}
)


def build_parser() -> argparse.ArgumentParser:
    """Declare the command line."""
    parser = cli.make_parser(__doc__)
    files = parser.group("files")
    files.add_argument("--train", type=Path, required=True, help="training triples: head<TAB>relation<TAB>tail")
    files.add_argument("--valid", type=Path, required=True, help="validation triples; they choose the best model")
    files.add_argument("--test", type=Path, required=True, help="test triples, ranked once at the end")
    cli.add_mapping_arguments(files)
    files.add_argument("--output-dir", "-o", type=Path, required=True, help="where all results go")
    files.add_argument("--checkpoint-dir", type=Path, help="where checkpoints go (default: OUTPUT_DIR/checkpoints)")
    files.add_argument(
        "--resume-from-checkpoint", type=Path, metavar="FILE",
        help="go on from this checkpoint_epoch_N.pt; auto takes the newest whole one, or starts from the beginning "
        "without one",
    )  # fmt: skip

    cli.add_settings(parser, settings.with_flags(*settings.TRAINING_SETTINGS))
    return parser


def main(argv: list[str] | None = None) -> None:
    """Parse, train, and print the test metrics."""
    parser = build_parser()
    args = parser.parse_args(argv)
    cli.let_waiting_threads_sleep()
    from conve_tracin.compute.parallel import processes

    with processes():
        run(args)


def run(args: argparse.Namespace) -> None:
    """Train as the arguments say, and print the test metrics."""
    from conve_tracin.compute import parallel
    from conve_tracin.compute.device import choose_device
    from conve_tracin.compute.memory import keep_freed_memory
    from conve_tracin.report.charts import write_training_curves
    from conve_tracin.training.run import OUTPUT_FILES, train

    require_outputs(args, OUTPUT_FILES)
    device = choose_device("cpu" if args.no_gpu else "auto")
    config = TrainingConfig(**cli.members_of(TrainingConfig, args))
    for message in settings_without_effect(args, config, device=device):
        logger.info(message)
    keep_freed_memory(device)
    results = train(
        read_data(args),
        config,
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
    files = {name: getattr(args, name) for name in ("train", "valid", "test", "entity_to_id", "relation_to_id")}
    print(f"Next: {rank_command(files, output_dir=args.output_dir, skip_unknown=args.skip_unknown)}")


def require_outputs(args: argparse.Namespace, names: Sequence[str]) -> None:
    """Raise InputError if the files of these names, or checkpoints, cannot be written or would replace an input."""
    require_usable_outputs(
        {f"--output-dir (for {name})": args.output_dir / name for name in names},
        directory=("--checkpoint-dir", checkpoint_dir_of(args)),
        inputs=(args.train, args.valid, args.test, args.entity_to_id, args.relation_to_id),
    )


def checkpoint_dir_of(args: argparse.Namespace) -> Path:
    """Return where checkpoints go."""
    return args.checkpoint_dir or args.output_dir / "checkpoints"


def choose_checkpoint(args: argparse.Namespace) -> Path | None:
    """Return the checkpoint to resume from; "auto" is the newest whole one. None starts from the beginning."""
    from conve_tracin.training.resume import newest_checkpoint

    if args.resume_from_checkpoint != Path("auto"):
        return args.resume_from_checkpoint
    newest = newest_checkpoint(checkpoint_dir_of(args))
    if newest is None:
        logger.info("no whole checkpoint in %s: training starts anew", checkpoint_dir_of(args))
    return newest


def read_data(args: argparse.Namespace) -> "TrainingData":
    """Read mappings and splits; raises InputError with file and line."""
    from conve_tracin.compute import parallel
    from conve_tracin.data.index import read_indexed
    from conve_tracin.data.remarks import remarks_on_test
    from conve_tracin.data.vocabulary import read_vocabulary
    from conve_tracin.training.run import TrainingData

    entities = read_vocabulary(args.entity_to_id, "entity")
    relations = read_vocabulary(args.relation_to_id, "relation")
    splits = [
        read_indexed(path, entities, relations, skip_unknown=args.skip_unknown)
        for path in (args.train, args.valid, args.test)
    ]
    if parallel.is_main_process():
        for remark in remarks_on_test(*splits):
            logger.info(remark)
    return TrainingData(
        *splits,
        num_entities=len(entities),
        num_relations=len(relations),
        mapping_digest={"entity": entities.digest(), "relation": relations.digest()},
    )


def settings_without_effect(args: argparse.Namespace, config: TrainingConfig, *, device: str) -> Iterator[str]:
    """Say which given flags change nothing here, one line each."""
    from conve_tracin.compute import parallel
    from conve_tracin.compute.device import supports_bfloat16

    yield from settings.settings_without_effect(TrainingMachine(**cli.members_of(TrainingMachine, args)))
    yield from settings.settings_without_effect(config)
    if config.use_mixed_precision and device == "cpu" and not supports_bfloat16(device):
        yield "--use-mixed-precision has no effect: this processor does not compute in bfloat16"
    if config.use_torch_compile and device != "cpu":
        if config.use_gradient_checkpointing:
            yield "--use-torch-compile has no effect on the encoder together with --use-gradient-checkpointing"
        elif parallel.world_size() > 1:
            yield "--use-torch-compile has no effect on the encoder with several GPUs: BatchNorm is synchronized"
    if config.auto_batch_size and parallel.world_size() > 1:
        yield "--auto-batch-size has no effect with several processes: one cannot halve a batch of all"
    if args.disable_memory_cleanup and device == "cpu":
        yield "--disable-memory-cleanup has no effect on the CPU, which caches no memory between batches"


if __name__ == "__main__":
    cli.run(main)

"""The two scripts: what each reads, how it names its files, and which of its flags change nothing."""

from collections.abc import Iterator
from dataclasses import replace

import torch

from conve_tracin.compute import parallel
from conve_tracin.data.names import Names
from conve_tracin.explanation.run import Script
from conve_tracin.influence.load import CheckpointLoader, NativeCheckpointLoader
from conve_tracin.influence.trace import Trace
from conve_tracin.report.tables import safe_file_name
from conve_tracin.settings import NativeEngine, TracInOptions, settings_without_effect


def _numbered_file(traced: Trace, index: int, names: Names) -> str:
    head, relation, tail = traced.test_triple
    labels = (names.entities.labels[head], names.relations.labels[relation], names.entities.labels[tail])
    return safe_file_name(f"test_{index}", *labels, suffix=".json")


def _file_of_ids(traced: Trace, _: int, __: Names) -> str:
    return "triple_{}_{}_{}.json".format(*traced.test_triple)


def run_tracin_without_effect(options: TracInOptions) -> Iterator[str]:
    """Say which given options change nothing in this run, one line each."""
    yield from settings_without_effect(options)
    yield from multi_gpu_without_effect(options)


def multi_gpu_without_effect(options: TracInOptions) -> Iterator[str]:
    """Say where --enable-multi-gpu changes nothing, and why."""
    if options.enable_multi_gpu and parallel.world_size() == 1:
        obstacle = parallel.obstacle_to_several_gpus(device=options.device, gpus=torch.cuda.device_count())
        yield f"--enable-multi-gpu has no effect: {obstacle or 'the scripts start several processes, not functions'}"


def tracin_pytorch_without_effect(options: TracInOptions) -> Iterator[str]:
    """Say which given flags of tracin_pytorch.py change nothing in this run, one line each."""
    # The flags of its own stand for this option.
    yield from settings_without_effect(replace(options, cache_test_gradients=None))
    yield from settings_without_effect(NativeEngine.of(options), options)
    yield from multi_gpu_without_effect(options)


TRACIN_PYTORCH = Script(
    loader=NativeCheckpointLoader,
    directory_flag="--output-dir",
    file_name=_file_of_ids,
    tells_index=False,
    without_effect=tracin_pytorch_without_effect,
)


RUN_TRACIN = Script(
    loader=CheckpointLoader,
    directory_flag="--output-per-triple",
    file_name=_numbered_file,
    tells_index=True,
    without_effect=run_tracin_without_effect,
)

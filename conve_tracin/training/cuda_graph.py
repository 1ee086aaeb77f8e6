"""Training's loss and gradients as a CUDA graph, recorded once and replayed for every batch.

A batch is a hundred small kernels, which a processor takes longer to launch one by one than a GPU to run. A CUDA graph
launches them together. Its sizes and memory are fixed: a batch's queries are copied into it, and lists of tails padded.
"""

import logging
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from conve_tracin.compute import parallel
from conve_tracin.data.queries import Queries
from conve_tracin.errors import first_line_of
from conve_tracin.settings import TrainingConfig
from conve_tracin.training.batch_loss import BatchLoss
from conve_tracin.training.state import mixed_precision_dtype

logger = logging.getLogger(__name__)

# On the first batches libraries choose and compile what a graph then repeats.
BATCHES_BEFORE_RECORDING = 3

# A graph has room for the tails of this share of batches, estimated from some that are drawn. The others hold a query
# of very many tails; with room for them, all batches would compute mostly padding.
SHARE_OF_BATCHES = 0.98

DRAWN_BATCHES = 256

# Computes tensors, and returns them and a function that computes them again in place.
Recorder = Callable[[Callable[[], list[Tensor]]], tuple[Callable[[], None], list[Tensor]]]


def can_replay(config: TrainingConfig, device: torch.device) -> bool:
    """Whether a CUDA graph can hold a batch.

    It cannot hold other processes' gradients, the scale of float16's gradients, dropout that is drawn twice, or a
    sample of the entities, which holds another number of the targets each time.
    """
    return (
        device.type == "cuda"
        and not config.entity_sample
        and parallel.world_size() == 1
        and not config.use_gradient_checkpointing
        and mixed_precision_dtype(config, device) is not torch.float16
    )


def record_graph(compute: Callable[[], list[Tensor]]) -> tuple[Callable[[], None], list[Tensor]]:
    """Record a CUDA graph of `compute`; return what replays it, and the tensors that each replay overwrites."""
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.current_stream()
    random_numbers = torch.cuda.default_generators[torch.cuda.current_device()]
    before = random_numbers.clone_state()
    try:
        with torch.cuda.graph(graph):
            results = compute()
    except BaseException:
        # A recording that breaks off does not restore them.
        torch.cuda.set_stream(stream)
        random_numbers.graphsafe_set_state(before)
        raise
    return graph.replay, results


class _Recording(NamedTuple):
    """A graph: the queries (B,) to set before a replay, the loss, and the gradients of all parameters."""

    replay: Callable[[], None]
    chosen: Tensor
    loss: Tensor
    gradients: list[Tensor]


class CUDAGraphLoss:
    """A `BatchLoss` that sets the parameters' gradients itself, and returns a loss that requires none.

    The first few batches, those of other sizes than `batch_size` and those with very many tails get `batch_loss` with
    its backward pass still to do. So do all batches if recording fails, which the log says.
    """

    def __init__(self, batch_loss: BatchLoss, *, batch_size: int, record: Recorder = record_graph) -> None:
        self.batch_loss, self.batch_size, self.record = batch_loss, batch_size, record
        self._parameters = list(batch_loss.parameters())
        self._batches_to_wait: float = BATCHES_BEFORE_RECORDING
        self._recording: _Recording | None = None
        self._tails_of_each = torch.empty(0)
        self._room = 0

    def __call__(self, queries: Queries, chosen: Tensor) -> Tensor:
        """Compute the loss, a scalar, of the queries `chosen` (B,), best on the CPU.

        `queries` must be the same in all calls.
        """
        if len(chosen) != self.batch_size or not self._is_ready(queries, chosen) or not self._has_room(chosen):
            return self.batch_loss(queries, chosen)
        recording = self._recording
        recording.chosen.copy_(chosen, non_blocking=True)
        recording.replay()
        for parameter, gradient in zip(self._parameters, recording.gradients, strict=True):
            parameter.grad = gradient
        return recording.loss.clone()

    @property
    def is_recorded(self) -> bool:
        """Whether there is a graph, which keeps its memory between batches."""
        return self._recording is not None

    def stop_replaying(self) -> None:
        """Free the graph and its memory, and record no more."""
        self._recording = None
        self._batches_to_wait = float("inf")

    def _is_ready(self, queries: Queries, chosen: Tensor) -> bool:
        if self._recording is None and self._batches_to_wait <= 0:
            try:
                self._record(queries, chosen)
            except Exception as error:  # drivers and libraries fail in many ways
                self.stop_replaying()
                logger.warning("training goes on without CUDA graphs, and more slowly: %s", first_line_of(error))
        self._batches_to_wait -= 1
        return self.is_recorded

    def _has_room(self, chosen: Tensor) -> bool:
        return int(self._tails_of_each[chosen.cpu()].sum()) <= self._room

    def _record(self, queries: Queries, chosen: Tensor) -> None:
        self._tails_of_each = queries.count_tails(torch.arange(len(queries), device=queries.heads.device)).cpu()
        visited = queries.shuffled_visits(torch.Generator().manual_seed(0))
        self._room = room_of_most_batches(self._tails_of_each[visited], self.batch_size)
        place_of_chosen = chosen.to(queries.heads.device, copy=True)

        def compute() -> list[Tensor]:
            loss = self.batch_loss(queries, place_of_chosen, room=self._room)
            return [loss.detach(), *torch.autograd.grad(loss, self._parameters)]

        replay, (loss, *gradients) = self.record(compute)
        self._recording = _Recording(replay, place_of_chosen, loss, gradients)


def room_of_most_batches(tails_of_each: Tensor, batch_size: int) -> int:
    """Return how many tails most random batches of visits have at most; each visit has `tails_of_each` (V,)."""
    generator = torch.Generator().manual_seed(0)
    batches = torch.randint(len(tails_of_each), (DRAWN_BATCHES, batch_size), generator=generator)
    tails = tails_of_each[batches].sum(dim=1).sort().values  # (DRAWN_BATCHES,)
    return int(tails[int(SHARE_OF_BATCHES * DRAWN_BATCHES)])

"""Training's loss and gradients on a GPU, recorded once and replayed for every batch.

A batch is a hundred small pieces of work, and a processor takes longer to start them one by one than a GPU to do them.
A CUDA graph is a recording of them all, which starts at once. It always has the same sizes and works in the same
memory: only the batch's queries are copied into it, and lists of tails are padded.
"""

import logging
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from conve_tracin import distributed
from conve_tracin.batch_loss import BatchLoss
from conve_tracin.queries import Queries
from conve_tracin.training_state import TrainingConfig, mixed_precision_dtype

logger = logging.getLogger(__name__)

# Libraries choose and compile on the first batches what a recording then repeats.
BATCHES_BEFORE_RECORDING = 3

# Computes tensors, and returns a function that computes them anew in their place.
Recorder = Callable[[Callable[[], list[Tensor]]], tuple[Callable[[], None], list[Tensor]]]


def can_replay(config: TrainingConfig, device: torch.device) -> bool:
    """Whether the device has recordings, and a batch nothing that no recording can hold.

    That is the other processes' gradients, the scale of float16's gradients, and dropout that is drawn twice.
    """
    return (
        device.type == "cuda"
        and distributed.count() == 1
        and not config.use_gradient_checkpointing
        and mixed_precision_dtype(config, device) is not torch.float16
    )


def record_graph(compute: Callable[[], list[Tensor]]) -> tuple[Callable[[], None], list[Tensor]]:
    """Record a CUDA graph of `compute`; return what replays it, and the tensors that each replay writes anew."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = compute()
    return graph.replay, results


class _Recording(NamedTuple):
    """One recording: the queries (B,) to write before a replay, the loss, and the gradients of all parameters."""

    replay: Callable[[], None]
    room: int
    chosen: Tensor
    loss: Tensor
    gradients: list[Tensor]


class ReplayedLoss:
    """A `BatchLoss` that leaves the gradients in the parameters, and returns a loss that requires none.

    Batches of other sizes than `batch_size` and the first few have the loss that requires gradients, and so have all
    where recording fails, which the log says.

    Args:
        batch_loss: what is recorded.
        batch_size: queries in a batch that is worth recording.
        record: `record_graph`, or what stands in for it where there is no GPU.
    """

    def __init__(self, batch_loss: BatchLoss, *, batch_size: int, record: Recorder = record_graph) -> None:
        self.batch_loss, self.batch_size, self.record = batch_loss, batch_size, record
        self._parameters = list(batch_loss.parameters())
        self._batches_to_wait: float = BATCHES_BEFORE_RECORDING
        self._recording: _Recording | None = None
        self._tails_of_each: Tensor | None = None

    def __call__(self, queries: Queries, chosen: Tensor) -> Tensor:
        """Compute the loss of the queries `chosen` (B,), best on the CPU; a scalar.

        `queries` are to be the same in all calls.
        """
        if len(chosen) != self.batch_size or self._batches_to_wait > 0:
            self._batches_to_wait -= len(chosen) == self.batch_size
            return self.batch_loss(queries, chosen)
        recording = self._recording_with_room(queries, chosen)
        if recording is None:
            return self.batch_loss(queries, chosen)
        recording.chosen.copy_(chosen, non_blocking=True)
        recording.replay()
        for parameter, gradient in zip(self._parameters, recording.gradients, strict=True):
            parameter.grad = gradient
        return recording.loss.clone()

    def _recording_with_room(self, queries: Queries, chosen: Tensor) -> _Recording | None:
        if self._tails_of_each is None:
            self._tails_of_each = queries.count_tails(torch.arange(len(queries), device=queries.heads.device)).cpu()
        needed = int(self._tails_of_each[chosen.cpu()].sum())
        if self._recording is None or needed > self._recording.room:
            # The old one's memory is free for the new one then.
            self._recording = None
            try:
                self._recording = self._record(queries, chosen, room=room_for(needed))
            except Exception as error:  # drivers and libraries fail in many ways
                self._batches_to_wait = float("inf")
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                logger.warning("training goes on without CUDA graphs, and more slowly: %s", reason)
        return self._recording

    def _record(self, queries: Queries, chosen: Tensor, *, room: int) -> _Recording:
        place_of_chosen = chosen.to(queries.heads.device, copy=True)

        def compute() -> list[Tensor]:
            loss = self.batch_loss(queries, place_of_chosen, room=room)
            return [loss.detach(), *torch.autograd.grad(loss, self._parameters)]

        replay, (loss, *gradients) = self.record(compute)
        return _Recording(replay, room, place_of_chosen, loss, gradients)


def room_for(tails: int) -> int:
    """Return the next power of two: batches differ, and few are to need a new recording.

    >>> room_for(300)
    512
    """
    return 1 << (tails - 1).bit_length()

"""train_pytorch.py with something changed, which the environment variable CHANGE names."""

import os
import signal
import sys

import torch

import train_pytorch
from conve_tracin import cli
from conve_tracin.compute import parallel
from conve_tracin.errors import InputError
from conve_tracin.model.conve import ConvE
from conve_tracin.training import batch_loss
from conve_tracin.training import loop as training_loop


def freeze():
    """Keep BatchNorm's statistics as they are, drop nothing, and compute in float64."""
    torch.set_default_dtype(torch.float64)
    ConvE.train = lambda self, mode=True: torch.nn.Module.train(self, False)
    batch_loss.encode_rows_by_patches = lambda model, *rows: model.encode_rows(*rows)


def note_statistics():
    """Write the statistics of each process to a file, as they are before all have their mean."""
    average = parallel.average_statistics

    def note_and_average(model):
        torch.save(model.state_dict(), f"{os.environ['NOTES']}.{parallel.rank()}")
        average(model)

    parallel.average_statistics = note_and_average


def in_the_second_epoch_of_process_1(fail):
    """Have `fail`, which takes the training state, run there."""
    run_epoch = training_loop.run_epoch

    def fail_or_run(state, *rest, **options):
        if state.epoch == 2 and parallel.rank() == 1:
            fail(state)
        return run_epoch(state, *rest, **options)

    training_loop.run_epoch = fail_or_run


def refuse(state):
    raise InputError("process 1 has had enough")


def spoil(state):
    state.model.fc.weight.data[0, 0] = float("nan")


def fill_memory(state):
    def no_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    training_loop.train_batch = no_memory


def be_killed(state):
    os.kill(os.getpid(), signal.SIGKILL)


def vanish(state):
    os._exit(0)


FAILURES = {function.__name__: function for function in (refuse, spoil, fill_memory, be_killed, vanish)}

if __name__ == "__main__":
    change = os.environ["CHANGE"]
    if change in FAILURES:
        in_the_second_epoch_of_process_1(FAILURES[change])
    else:
        {"freeze": freeze, "note_statistics": note_statistics}[change]()
    sys.argv[0] = "train_pytorch.py"
    cli.run(train_pytorch.main)

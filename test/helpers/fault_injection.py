"""Scripts as processes of their own that can be killed: forked from a server that has imported torch once."""

import importlib
import multiprocessing
import os
import resource
import runpy
import signal
import sys
from multiprocessing import forkserver
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVER = multiprocessing.get_context("forkserver")
# An optimizer imports torch._dynamo, the first file of triples pandas, a page jinja2.
SERVER.set_forkserver_preload(
    [
        "torch._dynamo", "pandas", "jinja2", "conve_tracin.training.run", "conve_tracin.explanation.explain",
        "conve_tracin.influence.tracin", "conve_tracin.influence.gauss_newton",
    ]
)  # fmt: skip


def start(script, *arguments, log, faults=()):
    """Start a script as a process of its own; its outputs are appended to the file `log`.

    `faults` are (function, *arguments) each, called in the process before the script.
    """
    words = [str(word) for word in arguments]
    # The server finds what it shall import here alone.
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'test'}")
        forkserver.ensure_running()
    process = SERVER.Process(target=_run_script, args=(script, words, str(log), faults))
    process.start()
    return process


def finish(script, *arguments, log, faults=()):
    """Run a script to its end; return its exit code, −9 where it was killed."""
    process = start(script, *arguments, log=log, faults=faults)
    process.join(timeout=300)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode


def _run_script(script, arguments, log, faults):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    # Those of the server know another kind of file behind the descriptors.
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(ROOT))
    import torch

    torch.set_num_threads(1)
    for function, *settings in faults:
        function(*settings)
    runpy.run_path(str(ROOT / script), run_name="__main__")


# ---------------------------------------------------------------------------------------------------------------
# Faults


def kill_at_step(number, count_file=None):
    """Kill this process without warning at one of the steps in which files are written, counted from 1.

    Each file takes four: its end is missing, all of it is written, it is on the disk, it has its place. With 0 the
    process lives, and the number of its steps goes into `count_file`.
    """
    fsync, replace = os.fsync, os.replace
    taken = []

    def is_due():
        taken.append(1)
        if count_file is not None:
            Path(count_file).write_text(str(len(taken)), encoding="utf-8")
        return len(taken) == number

    def fsync_with_steps(descriptor):
        if is_due():
            os.truncate(descriptor, max(os.fstat(descriptor).st_size - 20, 0))
            die()
        if is_due():
            die()
        fsync(descriptor)
        if is_due():
            die()

    def replace_with_step(source, target, **options):
        replace(source, target, **options)
        if is_due():
            die()

    os.fsync, os.replace = fsync_with_steps, replace_with_step


def signal_at_call(module_name, name, number, signal_number=signal.SIGKILL):
    """Send a signal to this process at a call of a function, counted from 1; without one it dies without warning."""
    do_at_call(module_name, name, number, lambda: os.kill(os.getpid(), signal_number))


def do_at_call(module_name, name, number, action):
    """Do something before a call of a function, counted from 1."""
    module = importlib.import_module(module_name)
    function, calls = getattr(module, name), []

    def called(*arguments, **settings):
        calls.append(1)
        if len(calls) == number:
            action()
        return function(*arguments, **settings)

    setattr(module, name, called)


def limit_file_size(size):
    """Let no file of this process grow past some bytes: what a full disk does, on any machine and for any user."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def print_into(path):
    """Let the standard output be another file."""
    descriptor = os.open(path, os.O_WRONLY)
    os.dup2(descriptor, 1)
    os.close(descriptor)
    sys.stdout = os.fdopen(1, "w", closefd=False)


def note_memory(path, every):
    """Write into a file, a line each, the resident bytes after every so many test triples, and when all is written."""

    from conve_tracin.explanation import explain

    trace_rest, print_results = explain.trace_rest, explain.print_results

    def note():
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        with Path(path).open("a") as file:
            file.write(f"{pages * resource.getpagesize()}\n")

    def trace_and_note(*arguments):
        for number, traced in enumerate(trace_rest(*arguments)):
            if number % every == 0:
                note()
            yield traced

    def print_and_note(*arguments):
        print_results(*arguments)
        note()

    explain.trace_rest, explain.print_results = trace_and_note, print_and_note


def remove_at_call(module_name, name, number, path):
    """Remove a file at a call of a function, counted from 1."""
    do_at_call(module_name, name, number, Path(path).unlink)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def train_in_float16(initial_scale, growth_interval):
    """Make mixed precision float16 on the CPU, with the scaler that a GPU without bfloat16 needs."""
    import torch

    from conve_tracin.training import batch_loss
    from conve_tracin.training import state as training_state

    def float16_where_mixed(config, _):
        return torch.float16 if config.use_mixed_precision else None

    class Scaler(torch.amp.GradScaler):
        def __init__(self, device, *, enabled):
            super().__init__(device, init_scale=initial_scale, growth_interval=growth_interval, enabled=enabled)

    batch_loss.mixed_precision_dtype = training_state.mixed_precision_dtype = float16_where_mixed
    torch.amp.GradScaler = Scaler

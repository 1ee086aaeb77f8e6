"""Start a script in several processes, and see what comes of it."""

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
# An optimizer imports the compiler.
SLOW_TO_IMPORT = ["torch", "torch._dynamo", "torch.nn.parallel", "pandas", "tqdm"]
LAUNCH = """
import sys
from conve_tracin import cli
from conve_tracin.compute import parallel
cli.run(lambda: sys.exit(parallel.launch(sys.argv[2:], int(sys.argv[1]))))
"""


def launch_processes(number, script, *arguments):
    """Run a script in `number` processes, as --enable-multi-gpu does; returns exit code, stdout and stderr."""
    command = [str(part) for part in (sys.executable, "-c", LAUNCH, number, script, *arguments)]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "test"), str(ROOT / "test/helpers")])
    }
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)


def run_processes(number, script, *arguments):
    """Do the same without a launcher, and in a fraction of the time: the processes need not import torch again.

    The exit code is that of process 0, and stdout and stderr are in the order of the processes.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(SLOW_TO_IMPORT)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as directory:
        outputs = [Path(directory) / str(rank) for rank in range(number)]
        places = [
            {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number}
            | {"MASTER_ADDR": "localhost", "MASTER_PORT": port}
            for rank in range(number)
        ]
        argv = [str(part) for part in (script, *arguments)]
        started = [
            context.Process(target=_run_script, args=(argv, os.environ | {k: str(v) for k, v in place.items()}, output))
            for place, output in zip(places, outputs, strict=True)
        ]
        for process in started:
            process.start()
        for process in started:
            process.join(timeout=120)
            process.kill()
        stdout, stderr = (
            "".join(output.with_suffix(suffix).read_text(encoding="utf-8") for output in outputs)
            for suffix in (".stdout", ".stderr")
        )
    return subprocess.CompletedProcess(argv, started[0].exitcode, stdout, stderr)


def _run_script(argv, environment, output):
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    for descriptor, suffix in ((1, ".stdout"), (2, ".stderr")):
        os.dup2(os.open(output.with_suffix(suffix), os.O_CREAT | os.O_WRONLY), descriptor)
    sys.argv = argv
    runpy.run_path(argv[0], run_name="__main__")

"""Runs of the scripts' own command lines in this process, with all that a terminal would have shown."""

import contextlib
import importlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from conve_tracin import cli


@dataclass(frozen=True)
class Finished:
    """Exit code and output of a run; `trouble` is the exception that a user would have seen as a traceback."""

    script: str
    code: int | None
    out: str
    err: str
    trouble: BaseException | None = None


def run(script: str, *arguments: object) -> Finished:
    """Run `script` ("train_pytorch") as `python script.py ARGUMENTS` does, messages and warnings included."""
    module = importlib.import_module(script)
    out, err = io.StringIO(), io.StringIO()
    code, trouble = None, None
    with (
        mock.patch.object(sys, "argv", [f"{script}.py", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        messages_on(err),
    ):
        try:
            cli.run(module.main)
        except SystemExit as stop:
            code = stop.code
        except Exception as error:
            trouble = error
    return Finished(script, code, out.getvalue(), err.getvalue(), trouble)


@contextlib.contextmanager
def messages_on(stream: io.StringIO) -> Iterator[None]:
    """Let log messages and warnings go where a script of its own sends them."""
    handler = logging.StreamHandler(stream)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)

    def show(message, category, filename, lineno, file=None, line=None):
        stream.write(warnings.formatwarning(message, category, filename, lineno, line))

    try:
        with warnings.catch_warnings(), mock.patch.object(warnings, "showwarning", show):
            yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


def assert_refused(finished: Finished, *, began: bool = False) -> str:
    """One line on standard error that names the script, exit code 2, and nothing else; returns the message.

    A run that `began` its work has said so above that line.
    """
    assert finished.trouble is None, finished
    assert finished.code == 2, finished
    assert finished.out == "", finished
    assert finished.err.endswith("\n"), finished
    *above, line = finished.err.removesuffix("\n").split("\n")
    assert began or not above, finished
    start = f"{finished.script}.py: error: "
    assert line.startswith(start), finished
    return line.removeprefix(start)


def contents_below(directory: Path) -> dict[str, bytes]:
    """All files below `directory`, hidden ones included, by their relative paths; directories end in a slash."""
    return {
        f"{path.relative_to(directory)}{'/' if path.is_dir() else ''}": b"" if path.is_dir() else path.read_bytes()
        for path in directory.rglob("*")
    }

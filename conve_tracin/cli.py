"""What the command lines share: parsers, argument types, logging, and errors as one line with exit code 2.

Neither torch nor pykeen is imported here, so that `--help` answers at once.
"""

import argparse
import importlib
import io
import logging
import math
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from conve_tracin.errors import InputError, TerminatedError, exit_code_of
from conve_tracin.settings import DEFAULT_BATCH_SIZE, METHODS, SIDES, TAIL, TRACIN

# Of torch's whole numbers, sizes and seeds among them.
LARGEST_INT = 2**63 - 1


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, without the usage in front."""

    def error(self, message: str) -> NoReturn:
        """Print the message on stderr and exit with code 2."""
        # Each process of torchrun reads the same command line; one of them says what is wrong with it.
        is_follower = os.environ.get("WORLD_SIZE", "1") != "1" and os.environ.get("RANK", "0") != "0"
        self.exit(2, None if is_follower else f"{self.prog}: error: {message} (see {self.prog} --help)\n")


class DefaultsHelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Names the defaults that say something, so neither None nor that a switch is off."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)


def make_parser(description: str, *, parents: tuple[argparse.ArgumentParser, ...] = ()) -> OneLineParser:
    """Make a script's parser; it knows `--debug` besides what `parents` bring."""
    parser = OneLineParser(description=description, parents=list(parents), formatter_class=DefaultsHelpFormatter)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _on_sigterm(*_: object) -> NoReturn:
    raise TerminatedError


def run(main: Callable[[], None]) -> NoReturn:
    """Run a script's `main` and exit.

    The exit code is 0, or with one line on stderr 2 for bad input or a full disk, 130 when interrupted, and 143 when
    terminated.
    """
    for stream in (sys.stdout, sys.stderr):
        # A name that the terminal's encoding lacks is no reason to lose the work.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    # One of several processes may be waiting for another, and is to end without a word and at once.
    if os.environ.get("WORLD_SIZE", "1") == "1":
        signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        main()
        sys.stdout.flush()
    except InputError as error:
        _exit_with(f"{Path(sys.argv[0]).name}: error: {' '.join(str(error).split())}", error)
    except KeyboardInterrupt as error:
        _exit_with(f"{Path(sys.argv[0]).name}: interrupted", error)
    except TerminatedError as error:
        _exit_with(f"{Path(sys.argv[0]).name}: terminated", error)
    except BrokenPipeError as error:
        # The reader of a pipe (head, less) has seen enough.
        sys.stderr.close()
        sys.exit(exit_code_of(error))
    except OSError as error:
        # Files that are read or written have better messages; this is what a path alone can be (too long, forbidden),
        # or a standard output on a full disk.
        _forget_unprinted()
        where, remedy = (f"{error.filename}: ", "check the path") if error.filename else ("", "--debug shows where")
        _exit_with(f"{Path(sys.argv[0]).name}: error: {where}{error.strerror or error}; {remedy}", error)
    sys.exit(0)


def _forget_unprinted() -> None:
    """Close a standard output that takes no more, on a full disk for example; Python would try again and complain."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError):
            sys.stdout.close()


def _exit_with(line: str, error: BaseException) -> NoReturn:
    if "--debug" in sys.argv[1:]:
        raise  # the exception that `run` is handling
    # The traceback holds loops with progress bars, which would end their lines after this one.
    traceback.clear_frames(error.__traceback__)
    print(line, file=sys.stderr)
    sys.exit(exit_code_of(error))


def lazy_exports(origins: dict[str, str]) -> Callable[[str], Any]:
    """Return a module-level `__getattr__` (PEP 562) that imports {name: module} on first use.

    "module:other_name" exports what has another name there.
    """

    def __getattr__(name: str) -> Any:
        if name not in origins:
            raise AttributeError(name)
        module, _, other_name = origins[name].partition(":")
        return getattr(importlib.import_module(module), other_name or name)

    return __getattr__


def add_mapping_arguments(group: argparse._ArgumentGroup, *, required: bool = True) -> None:
    """Declare the two mappings, and what to do with labels that they lack."""
    but = "" if required else "; may be left out for the directory of a PyKEEN pipeline"
    group.add_argument("--entity-to-id", type=Path, required=required, help=f"entity mapping: label<TAB>id{but}")
    group.add_argument("--relation-to-id", type=Path, required=required, help=f"relation mapping: label<TAB>id{but}")
    group.add_argument(
        "--skip-unknown", action="store_true", help="drop triples with unknown labels instead of stopping"
    )


def add_name_arguments(group: argparse._ArgumentGroup) -> None:
    """Declare the optional files that give entities and relations readable names."""
    group.add_argument("--node-name-dict", type=Path, help="names of entities: name<TAB>id")
    group.add_argument("--edge-map", type=Path, help="JSON of predicates: {'{\"predicate\": …}': relation label}")


def add_report_argument(group: argparse._ArgumentGroup) -> None:
    """Declare the report, a page to read beside the JSON."""
    group.add_argument(
        "--report", type=file_to_write, metavar="FILE.html",
        help="also write a self-contained page: evidence, paths, relations, and how it was computed",
    )  # fmt: skip
    group.add_argument(
        "--known", type=Path, nargs="+", default=(), metavar="FILE",
        help="further true triples, such as valid and test: the prediction's rank passes over their tails, too",
    )  # fmt: skip


def add_influence_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare how influence is computed, as far as all influence scripts share it."""
    influence = parser.add_argument_group("influence")
    influence.add_argument(
        "--method", choices=METHODS, default=TRACIN,
        help="tracin: the documented definition; gauss-newton: what agrees best with models that were retrained",
    )  # fmt: skip
    influence.add_argument(
        "--predicted-side", choices=SIDES, default=TAIL,
        help="which end of a test triple is explained; the head needs a model that was trained with inverse triples",
    )  # fmt: skip
    influence.add_argument(
        "--damping", type=positive_float, default=1.0, help="of gauss-newton, over the mean eigenvalue of a curvature"
    )
    influence.add_argument(
        "--learning-rate", type=positive_float, metavar="η",
        help="factor of every score (default: 0.001; with several checkpoints the one stored in each)",
    )  # fmt: skip
    influence.add_argument(
        "--training-loss", action="store_true",
        help="ℓ of tracin is the objective that the model was trained with, not the loss of the triple's own score",
    )  # fmt: skip
    influence.add_argument("--top-k", type=positive_int, default=10, help="how many influences to list")
    influence.add_argument(
        "--use-last-layers-only", action="store_true",
        help="track only the last tensors before the scoring layer; it agrees with retraining less",
    )  # fmt: skip
    influence.add_argument("--num-last-layers", type=positive_int, default=2, help="how many tensors that is")
    machine = parser.add_argument_group("machine")
    machine.add_argument(
        "--batch-size", type=positive_int, default=DEFAULT_BATCH_SIZE,
        help="(head, relation) pairs in a batch; the default is replaced by what fills a cache, or a GPU",
    )  # fmt: skip
    machine.add_argument(
        "--auto-batch-size", action="store_true",
        help="always on here: a batch that does not fit into memory is halved, which changes no result",
    )  # fmt: skip
    machine.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, …; auto takes a GPU where there is one")
    machine.add_argument("--use-mixed-precision", action="store_true", help="matrix products in bfloat16")
    machine.add_argument("--use-tf32", action="store_true", help="products on a GPU with TensorFloat-32's 10 bits")
    machine.add_argument("--use-gradient-checkpointing", action="store_true", help="accepted; see the message")
    machine.add_argument("--enable-multi-gpu", action="store_true", help="one process for each visible GPU")


def members_of(dataclass_type: type, args: argparse.Namespace) -> dict[str, Any]:
    """Pick the arguments that have the names of the dataclass's fields."""
    return {field.name: getattr(args, field.name) for field in fields(dataclass_type) if hasattr(args, field.name)}


def file_to_write(text: str) -> Path:
    """Take the path of a file that may be there or not; a directory is none."""
    if Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a directory; name a file")
    return Path(text)


def positive_int(text: str) -> int:
    """Parse a whole number of at least 1."""
    return _whole_number(text, at_least=1)


def non_negative_int(text: str) -> int:
    """Parse a whole number of at least 0."""
    return _whole_number(text, at_least=0)


def _whole_number(text: str, *, at_least: int) -> int:
    value = int(text)
    if value < at_least:
        raise argparse.ArgumentTypeError(f"{text} is below {at_least}")
    if value > LARGEST_INT:
        raise argparse.ArgumentTypeError(f"{text} is above {LARGEST_INT}")
    return value


def positive_float(text: str) -> float:
    """Parse a finite number above 0."""
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number above 0")
    return value


def non_negative_float(text: str) -> float:
    """Parse a finite number of at least 0."""
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number of at least 0")
    return value


def fraction(text: str) -> float:
    """Parse a number of at least 0 and below 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 0 and below 1")
    return value

"""What the command lines share: parsers, argument types, logging, and errors as one line with exit code 2.

Neither torch nor pykeen is imported here, so that `--help` answers at once.
"""

import argparse
import atexit
import gc
import importlib
import io
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, NoReturn

from conve_tracin.errors import InputError, TerminatedError, exit_code_of
from conve_tracin.settings import (  # noqa: F401  (the types of flags are for the scripts)
    TracInOptions,
    about,
    file_to_write,
    flag_of,
    fraction,
    is_switch,
    non_negative_float,
    non_negative_int,
    pick,
    positive_float,
    positive_int,
)


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, without the usage in front."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.groups: dict[str, argparse._ArgumentGroup] = {}

    def group(self, title: str, description: str | None = None) -> argparse._ArgumentGroup:
        """Return the group of flags of this title; a new one gets the description."""
        if title not in self.groups:
            self.groups[title] = self.add_argument_group(title, description)
        return self.groups[title]

    def error(self, message: str) -> NoReturn:
        """Print the message on stderr and exit with code 2."""
        # Each process of torchrun reads the same command line; one of them says what is wrong with it.
        is_follower = os.environ.get("WORLD_SIZE", "1") != "1" and os.environ.get("RANK", "0") != "0"
        self.exit(2, None if is_follower else f"{self.prog}: error: {message} (see {self.prog} --help)\n")


class DefaultsHelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Names the defaults that say something: not None, nothing, or that a switch is off."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        says_nothing = action.default is None or action.default is False or action.default == ()
        return action.help if says_nothing else super()._get_help_string(action)


def make_parser(description: str) -> OneLineParser:
    """Make a script's parser; it knows `--debug`."""
    parser = OneLineParser(description=description, formatter_class=DefaultsHelpFormatter)
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
    # Python would look for garbage among all that torch has left, when nobody needs the memory any more.
    atexit.register(gc.freeze)
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


def let_waiting_threads_sleep() -> None:
    """Let OpenMP's threads sleep while they wait for each other, unless the environment says otherwise.

    By default they spin, which is a little faster on an idle machine. Beside other work on the same cores they spin
    away the time that the thread they wait for needs. This counts for all of the process, and only before torch is
    imported.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


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


@contextmanager
def importing() -> Iterator[None]:
    """Let large packages be imported without looking for garbage among what they make to stay, then or later."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


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
    for each in pick(TracInOptions, "skip_unknown").values():
        add_setting(group, each)


def add_name_arguments(group: argparse._ArgumentGroup) -> None:
    """Declare the optional files that give entities and relations readable names."""
    group.add_argument(
        "--node-name-dict",
        type=Path,
        help="readable names of entities: name<TAB>id (prepare_data.py writes node_name_dict.txt)",
    )
    group.add_argument(
        "--edge-map",
        type=Path,
        help="readable predicates of relations, as JSON (prepare_data.py writes edge_map.json for KGX graphs)",
    )


def add_settings(parser: OneLineParser, settings: Mapping[str, Field]) -> None:
    """Declare the flags of settings, each in its group."""
    for each in settings.values():
        add_setting(parser.group(about(each).group), each)


def add_setting(group: argparse._ActionsContainer, declared: Field) -> None:
    """Declare the flag of a setting in a group of the parser."""
    said, flag, name = about(declared), flag_of(declared.name), declared.name
    if said.off:
        both = group.add_mutually_exclusive_group()
        both.add_argument(flag, dest=name, action="store_true", default=None, help=said.help)
        both.add_argument(said.off, dest=name, action="store_false", default=None, help=said.help)
    elif said.flags:
        values = group.add_mutually_exclusive_group()
        for value_flag, text in said.flags.items():
            values.add_argument(value_flag, dest=name, action="store_const", const=value_flag[2:], help=text)
    elif is_switch(declared):
        group.add_argument(flag, action="store_true", help=said.help)
    else:
        group.add_argument(
            flag, type=said.kind, choices=said.choices or None, default=declared.default, metavar=said.metavar,
            nargs="+" if said.many else None, help=said.help,
        )  # fmt: skip


def members_of(dataclass_type: type, args: argparse.Namespace) -> dict[str, Any]:
    """Pick the arguments that have the names of the dataclass's fields."""
    return {field.name: getattr(args, field.name) for field in fields(dataclass_type) if hasattr(args, field.name)}

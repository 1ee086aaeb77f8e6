"""What a field of a settings class declares: flag, help, check, "has no effect", "free on resuming"."""

import argparse
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from conve_tracin.errors import InputError

# The largest of torch's whole numbers, sizes and seeds among them.
LARGEST_INT = 2**63 - 1


@dataclass(frozen=True)
class Number:
    """A range of numbers: the type of a flag, and the check of what Python gives."""

    type: type
    wanted: str
    accepts: Callable[[Any], bool]
    otherwise: str

    def __call__(self, text: str) -> int | float:
        """Parse a word of the command line; raise argparse.ArgumentTypeError for what is no such number."""
        try:
            value = self.type(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {self.wanted}") from None
        if not self.accepts(value):
            raise argparse.ArgumentTypeError(f"{text} is {self.otherwise}")
        if self.type is int and value > LARGEST_INT:
            raise argparse.ArgumentTypeError(f"{text} is above {LARGEST_INT}")
        return value

    def holds(self, value: Any) -> bool:
        """Whether a value from Python is such a number; a whole number will do for a float."""
        return isinstance(value, int | self.type) and not isinstance(value, bool) and self.accepts(value)


def _number(kind: type, wanted: str, accepts: Callable[[Any], bool], otherwise: str = "") -> Number:
    return Number(kind, wanted, accepts, otherwise or f"not {wanted}")


positive_int = _number(int, "a whole number of at least 1", lambda value: value >= 1, "below 1")
non_negative_int = _number(int, "a whole number of at least 0", lambda value: value >= 0, "below 0")
positive_float = _number(float, "a finite number above 0", lambda value: 0 < value < math.inf)
non_negative_float = _number(float, "a finite number of at least 0", lambda value: 0 <= value < math.inf)
fraction = _number(float, "at least 0 and below 1", lambda value: 0 <= value < 1)
hops = _number(int, "1, 2 or 3", lambda value: 1 <= value <= 3)


def file_to_write(text: str) -> Path:
    """Take the path of a file that may be there or not; a directory is none."""
    if Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a directory; name a file")
    return Path(text)


# What another value means for a run that goes on from a checkpoint.
REFUSED = "refused"
NEW_RUN = "training goes on and says so; the pipeline starts a new run"
SAID = "training goes on and says so, in the pipeline too"
FREE = "training goes on"


@dataclass(frozen=True)
class Condition:
    """When a setting has an effect, and what stands behind "has no effect" when it has none."""

    holds: Callable[[Any], bool]
    otherwise: str


def needs(**values: str) -> Condition:
    """Say that other settings must have these values."""
    flags = " and ".join(f"{flag_of(name)} {value}" for name, value in values.items())
    return Condition(
        lambda given: all(getattr(given, name) == value for name, value in values.items()), f" without {flags}"
    )


def unless(*, why: str = "", **values: Any) -> Condition:
    """Say that another setting must not have this value."""
    ((name, value),) = values.items()
    flag = flag_of(name) if value is True else f"{flag_of(name)} {value}"
    return Condition(lambda given: getattr(given, name) != value, f" with {flag}{why}")


def unless_given(name: str, why: str) -> Condition:
    """Say that another setting must be left out."""
    return Condition(lambda given: getattr(given, name) is None, f" with {flag_of(name)}{why}")


def never(why: str) -> tuple[Condition]:
    """Say that a setting is accepted only."""
    return (Condition(lambda _: False, f": {why}"),)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a field says besides its name, type and default."""

    help: str
    group: str | None = None  # of --help; without one there is no flag
    kind: Callable[[str], Any] | None = None  # turns a word of the command line into the value; text by default
    choices: Collection[str] = ()
    metavar: str | None = None
    many: bool = False  # the flag takes several values
    off: str | None = None  # the flag that says False, if None stands for "not said"
    flags: Mapping[str, str] = field(default_factory=dict)  # {"--value": help}, if each choice has a flag of its own
    called: str | None = None  # what lines about effects call it, if not by its flag
    matters: tuple[Condition, ...] = ()
    on_resume: str = NEW_RUN  # one of REFUSED, NEW_RUN, SAID and FREE
    before: Any = None  # what checkpoints without the setting were trained with, if not with the default


def setting(default: Any = MISSING, **said: Any) -> Any:
    """Declare a field of a settings dataclass; `said` are the members of `Setting`."""
    return field(default=default, metadata={"setting": Setting(**said)})


def about(declared: Field) -> Setting | None:
    """Return what a field says; None for a file that the scripts declare."""
    return declared.metadata.get("setting")


def flag_of(name: str) -> str:
    """Return the flag of a setting: batch_size is --batch-size."""
    return "--" + name.replace("_", "-")


def is_switch(declared: Field) -> bool:
    """Whether the flag takes no value."""
    return declared.default is False


def with_flags(*settings_types: type, groups: Sequence[str] | None = None) -> dict[str, Field]:
    """Return the fields that have flags, in the order of --help, from some groups or all."""
    found = {each.name: each for kind in settings_types for each in fields(kind) if about(each) and about(each).group}
    return {name: each for name, each in found.items() if groups is None or about(each).group in groups}


def pick(settings_type: type, *names: str) -> dict[str, Field]:
    """Return some of the fields."""
    return {name: settings_type.__dataclass_fields__[name] for name in names}


def require_valid(settings: Any) -> None:
    """Raise InputError for a value that the command line would not take."""
    for each in fields(settings):
        said, value = about(each), getattr(settings, each.name)
        if said is None or (value is None and each.default is None):
            continue
        if said.choices and value not in said.choices:
            raise InputError(f"{each.name} {value!r}: choose one of {', '.join(said.choices)}")
        values = value if said.many else [value]
        if isinstance(said.kind, Number) and not all(map(said.kind.holds, values)):
            raise InputError(f"{each.name} is {value!r:.40}; it must be {said.kind.wanted}")
        if is_switch(each) and not isinstance(value, bool):
            raise InputError(f"{each.name} is {value!r:.40}; it must be true or false")


def reason_without_effect(declared: Field, settings: Any) -> str | None:
    """Return the words behind "has no effect", or None for a setting that has one."""
    return next((when.otherwise for when in about(declared).matters if not when.holds(settings)), None)


def settings_without_effect(given: Any, settings: Any = None) -> Iterator[str]:
    """Say which of the given settings change nothing, one line each; `settings` are all, if not the same."""
    for each in fields(given):
        value = getattr(given, each.name)
        if about(each) is None or value == each.default or value == []:
            continue
        reason = reason_without_effect(each, given if settings is None else settings)
        if reason is not None:
            flag = about(each).off if about(each).off and value is False else flag_of(each.name)
            yield f"{about(each).called or flag} has no effect{reason}"


@dataclass(frozen=True)
class Change:
    """A setting that is not what a checkpoint was trained with."""

    name: str
    before: Any
    now: Any
    is_refused: bool


def changes_on_resuming(stored: Mapping[str, Any], settings: Any) -> Iterator[Change]:
    """List the settings that differ from those in a checkpoint, without those that are free to change."""
    for each in fields(settings):
        said, now = about(each), getattr(settings, each.name)
        before = stored_setting(stored, each)
        if before != now and said.on_resume != FREE:
            yield Change(each.name, before, now, is_refused=said.on_resume == REFUSED)


def stored_setting(stored: Mapping[str, Any], declared: Field) -> Any:
    """Return what a checkpoint was trained with, whether it tells or has what was usual before the setting was."""
    before = about(declared).before
    return stored.get(declared.name, declared.default if before is None else before)


def stored_settings(settings_type: type, stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return all settings of a kind that a checkpoint was trained with."""
    return {each.name: stored_setting(stored, each) for each in fields(settings_type)}


def may_change_in_a_run(declared: Field) -> bool:
    """Whether a run of the pipeline may go on from its checkpoints with another value."""
    return about(declared).on_resume in (SAID, FREE)

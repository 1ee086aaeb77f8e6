"""The settings of verify_tracin.py."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from conve_tracin.settings.fields import non_negative_int, positive_int, require_valid, setting
from conve_tracin.settings.training import machine_setting

_verification = partial(setting, group="what is trained")


@dataclass(frozen=True, kw_only=True)
class VerificationOptions:
    """The options of `verify`; `verify_tracin.py --help` describes each.

    `influences` are JSON files of the influence scripts, `known` files of further true triples.

    Raises InputError for a value that the command line would not take.
    """

    influences: Sequence[Path | str]
    model_path: Path | str
    train: Path | str
    entity_to_id: Path | str
    relation_to_id: Path | str
    output: Path | str
    report: Path | str | None = None
    known: Sequence[Path | str] = ()
    skip_unknown: bool = False
    edge_map: Path | str | None = None
    node_name_dict: Path | str | None = None

    remove: int = _verification(10, help="how many of the strongest proponents to leave out", kind=positive_int)
    seeds: int = _verification(3, help="trainings of each kind, each with a seed of its own", kind=positive_int)
    seed: int | None = _verification(
        None, help="the first of them, the others count up (default: one above the checkpoint's)", kind=non_negative_int
    )
    together: bool = _verification(
        False, help="leave out the proponents of all predictions at once, instead of training for each prediction"
    )
    num_epochs: int | None = _verification(
        None, kind=positive_int,
        help="of each training (default: until the checkpoint's own validation MRR was within 1%% of its best)",
    )  # fmt: skip
    num_workers: int | None = machine_setting(
        None, help="trainings at a time (default: one on a GPU, else one for each core)", kind=positive_int
    )
    device: str = machine_setting("auto", help="cpu, cuda, cuda:1, …; auto takes a GPU if there is one")

    def __post_init__(self) -> None:
        require_valid(self)

    @property
    def inputs(self) -> tuple[Path | str | None, ...]:
        """All that is read; None for what was not given."""
        mappings = (self.entity_to_id, self.relation_to_id, self.edge_map, self.node_name_dict)
        return (*self.influences, self.model_path, self.train, *self.known, *mappings)

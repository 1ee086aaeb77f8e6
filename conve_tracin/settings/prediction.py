"""The settings of predict_pytorch.py."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from conve_tracin.errors import InputError
from conve_tracin.settings.fields import positive_int, setting

_asked = partial(setting, group="what is asked")
_answers = partial(setting, group="which answers")


@dataclass(frozen=True, kw_only=True)
class PredictionOptions:
    """The options of `predict`; `predict_pytorch.py --help` describes each.

    What is asked is either `queries`, a file, or `relation` with one of `head` and `tail`.

    Raises InputError where options contradict each other.
    """

    model_path: Path | str
    entity_to_id: Path | str
    relation_to_id: Path | str
    output: Path | str
    skip_unknown: bool = False
    edge_map: Path | str | None = None
    node_name_dict: Path | str | None = None
    trust_pickle: bool = False
    embedding_height: int | None = None
    embedding_width: int | None = None

    head: str | None = _asked(None, metavar="H", help="with --relation: which tails?")
    relation: str | None = _asked(None, metavar="R", help="the relation of head and tail")
    tail: str | None = _asked(
        None, metavar="T", help="with --relation: which heads? Needs a model that was trained with inverse triples"
    )
    queries: Path | str | None = _asked(
        None, kind=Path, metavar="FILE", help="instead: a triple a line, tab-separated, with ? for what is asked"
    )
    given_as: str | None = None

    top_k: int = _answers(50, kind=positive_int, help="how many to list for each query")
    known: Sequence[Path | str] = _answers(
        (), kind=Path, many=True, metavar="FILE",
        help="true triples, such as train, valid and test: they are left out, and ranks pass over them",
    )  # fmt: skip
    keep_known: bool = _answers(False, help="list them, too, and mark them")
    candidates: Path | str | None = _answers(
        None, kind=Path, metavar="FILE", help="rank these entities alone: a label, id or name a line"
    )
    candidate_category: str | None = _answers(
        None, metavar="CATEGORY",
        help="rank entities of this Biolink category alone, such as biolink:Drug, as --nodes lists it",
    )  # fmt: skip
    nodes: Path | str | None = _answers(None, kind=Path, metavar="FILE", help="nodes.jsonl of the KGX graph")
    device: str = "auto"

    def __post_init__(self) -> None:
        ends = [end for end in (self.head, self.tail) if end is not None]
        if self.queries is not None and (ends or self.relation is not None):
            raise InputError("--queries FILE holds all that is asked; leave out --head, --relation and --tail")
        if self.queries is None and self.relation is None:
            raise InputError("nothing is asked; give --relation R with --head H or --tail T, or --queries FILE")
        if self.queries is None and len(ends) != 1:
            which = "both" if ends else "neither"
            raise InputError(
                f"{which} of --head and --tail given; give --head H for likely tails, or --tail T for likely heads"
            )
        if (self.candidate_category is None) != (self.nodes is None):
            raise InputError("--candidate-category needs --nodes FILE, which says what each node is; give both")
        if self.candidates is not None and self.nodes is not None:
            raise InputError("--candidates and --candidate-category exclude each other; give one")
        if Path(self.output).suffix not in (".tsv", ".json"):
            raise InputError(f"{self.output}: the ending says what is written; name a .tsv or a .json")

    @property
    def inputs(self) -> tuple[Path | str | None, ...]:
        """All that is read; None for what was not given."""
        names = (self.entity_to_id, self.relation_to_id, self.edge_map, self.node_name_dict)
        return (self.model_path, *names, self.queries, *self.known, self.candidates, self.nodes)

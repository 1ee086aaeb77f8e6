"""The settings of predict_pytorch.py."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from conve_tracin.errors import InputError


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
    head: str | None = None
    relation: str | None = None
    tail: str | None = None
    given_as: str | None = None
    queries: Path | str | None = None
    top_k: int = 50
    known: Sequence[Path | str] = ()
    keep_known: bool = False
    candidates: Path | str | None = None
    candidate_category: str | None = None
    nodes: Path | str | None = None
    skip_unknown: bool = False
    edge_map: Path | str | None = None
    node_name_dict: Path | str | None = None
    trust_pickle: bool = False
    embedding_height: int | None = None
    embedding_width: int | None = None
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

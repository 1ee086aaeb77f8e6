"""The settings of prepare_data.py."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from conve_tracin.settings.fields import fraction, non_negative_int, positive_int, setting, unless

# The keys of conve_tracin.data.kgx.styles.STYLES, whose module is slow to import.
STYLES = ("keepall", "original", "CD", "CGGD", "CCGGDD", "rCD", "CGGD_alltreat", "CCGGDD_alltreat", "clean_baseline")

SPLITTING = "splitting (of a KGX graph, one file, or a dataset without validation triples)"


@dataclass(frozen=True, kw_only=True)
class PrepareSettings:
    """What `prepare_data.py` takes besides the directory to write to; its --help describes each."""

    dataset: str | None = setting(
        None, help="a PyKEEN dataset; umls, nations and kinships need no network", metavar="NAME", group="graph"
    )
    triples: Sequence[Path] | None = setting(
        None, kind=Path, many=True, metavar="PATH", group="graph",
        help="head<TAB>relation<TAB>tail: one file to be split, TRAIN VALID TEST, or a directory that holds "
        "train.txt, valid.txt and test.txt",
    )  # fmt: skip
    nodes: Path | None = setting(
        None, help="nodes of a KGX graph (JSON lines or table), with --edges", kind=Path, metavar="FILE", group="graph"
    )
    triples_format: str | None = setting(
        None, choices=("labels", "openke"), group="graph",
        help="of --triples: openke holds ids as head, tail, relation below a count, with entity2id.txt and "
        "relation2id.txt beside it (default: labels that look neither like ids nor like a header)",
    )  # fmt: skip
    edges: Path | None = setting(
        None, help="edges of the graph that --nodes belongs to", kind=Path, metavar="FILE", group="KGX graph"
    )
    style: str = setting(
        "keepall", choices=STYLES, group="KGX graph",
        help="which edges are kept, by the categories of their ends (C chemical, G gene, D disease)",
    )  # fmt: skip
    test_predicate: str | None = setting(
        None, metavar="PREDICATE", group="KGX graph",
        help="hold out edges with this predicate only, such as biolink:treats; the fractions are shares of them",
    )  # fmt: skip
    negated: str = setting(
        "drop", choices=("drop", "keep"), group="KGX graph",
        help='edges that say that something is not so: drop and count them, or keep them as relations "not …"',
    )  # fmt: skip
    exclude_source: Sequence[str] | None = setting(
        None, many=True, metavar="INFORES", group="KGX graph",
        help="leave out edges that have one of these among their knowledge sources, such as infores:semmeddb",
    )  # fmt: skip
    knowledge_level: Sequence[str] | None = setting(
        None, many=True, metavar="LEVEL", group="KGX graph",
        help="keep edges of these knowledge levels only, such as knowledge_assertion; edges without one are "
        "not_provided",
    )  # fmt: skip
    agent_type: Sequence[str] | None = setting(
        None, many=True, metavar="TYPE", group="KGX graph",
        help="keep edges of these agent types only, such as manual_agent; edges without one are not_provided",
    )  # fmt: skip
    min_degree: int | None = setting(
        None, kind=positive_int, metavar="N", group="KGX graph",
        help="leave out entities with fewer edges, until none is left (default: 5 in the style clean_baseline, which "
        "keeps all edges of what is treated or treats; otherwise 1)",
    )  # fmt: skip
    drugmechdb: Path | None = setting(
        None, kind=Path, metavar="FILE", group="KGX graph",
        help="DrugMechDB's indication_paths.json: write the known reasons of the graph's treatments, reasons.jsonl.gz",
    )  # fmt: skip
    equivalents: Path | None = setting(
        None, kind=Path, metavar="FILE", group="KGX graph", matters=(unless(drugmechdb=None),),
        help="for --drugmechdb: lines of CURIEs, separated by tabs, that mean the same thing",
    )  # fmt: skip
    skip_malformed: bool = setting(False, help="leave out and count broken lines", group="KGX graph")
    skip_unknown: bool = setting(False, help="leave out and count edges with an end not in --nodes", group="KGX graph")
    valid_fraction: float = setting(0.1, help="share of the triples in valid.txt", kind=fraction, group=SPLITTING)
    test_fraction: float = setting(0.1, help="share of the triples in test.txt", kind=fraction, group=SPLITTING)
    hold_out_pairs: bool = setting(
        False, help="take all triples that join the two entities of a valid or test triple out of training",
        group=SPLITTING,
    )  # fmt: skip
    random_seed: int = setting(
        42, help="seed of the random choice of what is held out", kind=non_negative_int, group=SPLITTING
    )

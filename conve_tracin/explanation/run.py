"""What the two scripts do differently, and what one run of them works on."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from conve_tracin.data.graph import Graph
from conve_tracin.data.kgx.categories import Categories
from conve_tracin.data.names import Names
from conve_tracin.influence import known_reasons
from conve_tracin.influence.load import CheckpointLoader
from conve_tracin.influence.method import module_of
from conve_tracin.influence.paths import PathFinder
from conve_tracin.influence.provenance import Provenance, doubts_about, provenance_of
from conve_tracin.influence.trace import Trace
from conve_tracin.report.notes import Notes
from conve_tracin.settings import TracInOptions

Triple = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Script:
    """What the two scripts do differently with the same traces.

    Attributes:
        loader: the checkpoints that the script reads.
        directory_flag: the flag of a directory with one file for each test triple.
        file_name: the name of such a file, for a trace and the test triple's place in its file.
        tells_index: each result holds that place, and a file of several holds what they have in common.
        without_effect: says which given flags change nothing, one line each.
    """

    loader: type[CheckpointLoader]
    directory_flag: str
    file_name: Callable[[Trace, int, Names], str]
    tells_index: bool
    without_effect: Callable[[TracInOptions], Iterator[str]]


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one run works on.

    Attributes:
        script: which one runs.
        options: what was asked for.
        names: the mappings and what they call things.
        checkpoints, learning_rates: the models, one η each.
        graph: of the training triples.
        known_triples: those of --known, ids, (M, 3).
        test_triples: ids, (n, 3); none in mode "self".
        test_indices: their places in the test file.
        load: reads a checkpoint.
        logged: the warnings that were logged, which grow while the run works.
        categories: of the entities; None if no nodes were given.
        notes: what else is known of training triples; the edges behind them once it is known which are shown.
    """

    script: Script
    options: TracInOptions
    names: Names
    checkpoints: list[Path]
    learning_rates: list[float]
    graph: Graph
    known_triples: np.ndarray
    test_triples: np.ndarray
    test_indices: list[int]
    load: CheckpointLoader
    logged: list[str]
    categories: Categories | None = None
    notes: Notes = field(default_factory=Notes)

    @property
    def training_triples(self) -> np.ndarray:
        """The distinct ones, ids, (N, 3)."""
        return self.graph.triples

    @cached_property
    def find_paths(self) -> PathFinder | None:
        """Finds the paths of a test triple in the training graph; None if none are asked for."""
        if not self.options.paths:
            return None
        return PathFinder(self.graph, limit=self.options.paths, max_hops=self.options.max_hops)

    @cached_property
    def provenances(self) -> list[Provenance]:
        """What is known of each checkpoint."""
        return [provenance_of(path) for path in self.checkpoints]

    @property
    def warnings(self) -> list[str]:
        """What to be careful about in all results: what was logged, and doubts about the models."""
        return list(dict.fromkeys((*self.logged, *doubts_about(self.provenances, method=self.options.method))))

    @property
    def rank_reasons(self) -> Callable[[np.ndarray, torch.Tensor], known_reasons.ReasonRanks | None] | None:
        """Ranks the known reasons of a test triple; None if none are given."""
        if self.notes.explained is None:
            return None

        def rank(test_triple: np.ndarray, scores: torch.Tensor) -> known_reasons.ReasonRanks | None:
            explained = self.notes.explained.get(tuple(test_triple.tolist()))
            if explained is None:
                return None
            return known_reasons.rank_reasons(scores.numpy(), self.training_triples, explained)

        return rank

    @property
    def method(self) -> str:
        """What the influences are computed with, in words."""
        return module_of(self.options.method).title(self.options)

    @property
    def settings(self) -> dict[str, Any]:
        """The members that all JSON outputs have in common."""
        rates = self.learning_rates
        return {
            "top_k": self.options.top_k,
            "learning_rate": rates[0] if len(rates) == 1 else rates,
            "method": self.options.method,
            **module_of(self.options.method).members(self.options),
            "checkpoints": [str(path) for path in self.checkpoints],
        }

"""ConvE link prediction on knowledge graphs, and the training triples behind each prediction.

The names below are imported on first use: importing the package needs neither torch nor pykeen.
"""

from conve_tracin.cli import lazy_exports

__version__ = "0.1.0"

_ORIGINS = {
    "TracInAnalyzerPyTorch": "conve_tracin.influence.analyzers",
    "TracInOptions": "conve_tracin.settings",
    "TrainingConfig": "conve_tracin.settings",
    "build_model": "conve_tracin.checkpoint.native",
    "load_checkpoint": "conve_tracin.checkpoint.native",
    "read_triples": "conve_tracin.data.triples",
    "read_vocabulary": "conve_tracin.data.vocabulary",
    "run_tracin_analysis": "conve_tracin.explanation.explain",
}
__all__ = [*_ORIGINS]
__getattr__ = lazy_exports(_ORIGINS)


def __dir__() -> list[str]:
    return sorted([*globals(), *_ORIGINS])

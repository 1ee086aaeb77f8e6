#!/usr/bin/env python3
"""TracIn for PyKEEN models of any class: `TracInAnalyzer`, the plain reference.

As a script it is `run_tracin.py` without `--use-optimized-tracin`.
"""

from conve_tracin import cli

__getattr__ = cli.lazy_exports({"TracInAnalyzer": "conve_tracin.influence.analyzers"})

if __name__ == "__main__":
    import run_tracin

    cli.run(run_tracin.main)

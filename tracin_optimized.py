#!/usr/bin/env python3
"""The interface of tracin.py on forward-mode passes: the same results, in far less time.

As a script it is `run_tracin.py --use-optimized-tracin`.
"""

import sys

from conve_tracin import cli

__getattr__ = cli.lazy_exports({"TracInAnalyzer": "conve_tracin.influence.analyzers:TracInAnalyzerOptimized"})

if __name__ == "__main__":
    import run_tracin

    cli.run(lambda: run_tracin.main(["--use-optimized-tracin", *sys.argv[1:]]))

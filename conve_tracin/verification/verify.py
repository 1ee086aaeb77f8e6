"""Checking an explanation: is the prediction lost without its proponents? The work of verify_tracin.py.

The model's training is repeated with everything, without the strongest proponents, and without as many random triples
that share an entity with the prediction, each with several seeds.
"""

from pathlib import Path
from typing import Any

from conve_tracin.files import json_text, require_usable_outputs, write_together
from conve_tracin.influence.journal import Journal
from conve_tracin.report import verification as report
from conve_tracin.settings import VerificationOptions
from conve_tracin.verification.plan import plan
from conve_tracin.verification.read import read
from conve_tracin.verification.result import computation_of, content_of, print_results, verification_of
from conve_tracin.verification.train import digest_of_run, train_all


def verify(options: VerificationOptions) -> dict[str, Any]:
    """Do what `verify_tracin.py` does; return the content of the JSON.

    Raises InputError for files or options that cannot be used, and if a training fails.
    """
    require_usable_outputs({"--output": options.output, "--report": options.report}, inputs=options.inputs)
    run = read(options)
    trainings = plan(run)
    with Journal(Path(f"{options.output}.unfinished"), digest_of_run(run)) as journal:
        measured = train_all(run, trainings, journal)
        verifications = [verification_of(run, trainings, measured, place) for place in range(len(run.predictions))]
        content = content_of(run, verifications)
        files = {Path(options.output): json_text(content)}
        if options.report is not None:
            files[Path(options.report)] = [report.page_of(verifications, run.names, computation_of(run))]
        write_together(files)
        print_results(run, verifications)
        journal.remove()
    return content

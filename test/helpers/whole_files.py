"""Files that must be whole whatever happened."""

import csv
import json
from xml.etree import ElementTree

from tracin_runs import content_of, files  # noqa: F401 - `files` is a fixture

from conve_tracin.checkpoint.native import build_model, load_checkpoint


def assert_all_whole(directory):
    """Read every file but those that are being written, whose names say so."""
    for path in directory.rglob("*"):
        if path.is_dir() or (path.name.startswith(".") and path.suffix == ".part"):
            continue
        if path.suffix == ".pt":
            build_model(load_checkpoint(path))
        elif path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".svg":
            ElementTree.parse(path)
        elif path.suffix == ".csv":
            with path.open(encoding="utf-8", newline="") as file:
                assert len({len(row) for row in csv.reader(file)}) == 1
        elif path.suffix == ".html":
            assert path.read_text(encoding="utf-8").endswith("</html>\n")
        else:
            assert path.suffix == ".unfinished", path

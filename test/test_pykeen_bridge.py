import logging
from pathlib import Path

import pykeen.datasets
import pytest

from conve_tracin.errors import InputError
from conve_tracin.pykeen_bridge import load_dataset_triples


@pytest.mark.parametrize("name", ["UMLS", "umls", "Nations"])
def test_dataset_triples_are_those_of_the_files_in_the_package(name):
    triples = load_dataset_triples(name)
    folder = Path(pykeen.datasets.__file__).parent / name.lower()
    assert list(triples) == ["train", "valid", "test"]
    for part, rows in triples.items():
        lines = (folder / f"{part}.txt").read_text(encoding="utf-8").splitlines()
        assert sorted(rows) == sorted(tuple(line.split("\t")) for line in lines)
        assert all(type(label) is str for label in rows[0])


def test_unknown_dataset_lists_close_names():
    with pytest.raises(InputError, match=r"'Natoins'.*did you mean Nations\?"):
        load_dataset_triples("Natoins")
    with pytest.raises(InputError, match=r"it has AristoV4.*UMLS"):
        load_dataset_triples("qqqqqq")


def test_dataset_that_cannot_be_loaded_is_an_input_error(monkeypatch):
    def broken(self, **kwargs):
        raise OSError("host not reachable")

    monkeypatch.setattr(pykeen.datasets.UMLS, "__init__", broken)
    level = logging.getLogger("pykeen").level
    with pytest.raises(InputError, match=r"UMLS.*host not reachable"):
        load_dataset_triples("UMLS")
    assert logging.getLogger("pykeen").level == level

"""What `import conve_tracin` offers, and the README's Python example."""

import json
import re
import subprocess
import sys

import pytest
from documents import FENCED, ROOT, read

import conve_tracin

# What `make demo` leaves; the test puts files of a small model in their place.
PATHS = (
    "demo/model/best_model.pt", "demo/data/train.txt", "demo/data/entity_to_id.tsv",
    "demo/data/relation_to_id.tsv", "demo/explained.json",
)  # fmt: skip


def python_example():
    (example,) = [content for _, language, content in FENCED.findall(read("README.md")) if language == "python"]
    return example


def run_python(code, directory):
    environment = {"PATH": "", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=directory, env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_every_name_is_what_its_module_calls_it():
    assert sorted(conve_tracin.__all__) == conve_tracin.__all__
    for name in conve_tracin.__all__:
        assert getattr(conve_tracin, name).__name__ == name
        assert name in dir(conve_tracin)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = conve_tracin.no_such_name


def test_importing_the_package_imports_neither_torch_nor_pykeen(tmp_path):
    code = "import sys, conve_tracin; print({'torch', 'pykeen', 'numpy', 'pandas'} & set(sys.modules))"
    assert run_python(code, tmp_path) == "set()\n"
    code = "import sys, conve_tracin; conve_tracin.TracInOptions; print({'torch', 'pykeen'} & set(sys.modules))"
    assert run_python(code, tmp_path) == "set()\n"


def test_the_example_shows_the_strongest_proponents_of_what_it_wrote(graph_files, run, tmp_path):
    run("model", digest={})
    example = python_example()
    assert len(re.findall(r"^.+$", example, re.MULTILINE)) <= 11
    given = (tmp_path / "model/best_model.pt", graph_files.train, graph_files.entity_to_id, graph_files.relation_to_id,
             tmp_path / "explained.json")  # fmt: skip
    for name, path in zip(PATHS, given, strict=True):
        assert example.count(f'"{name}"') == 1
        example = example.replace(f'"{name}"', repr(str(path)))
    asked = '"test_triple": ("ibuprofen", "treats", "MONDO:0005148")'
    example, count = re.subn(r'"test_triple": \(.*?\)', asked, example)
    assert count == 1

    printed = run_python(example, tmp_path)

    (result,) = json.loads((tmp_path / "explained.json").read_text(encoding="utf-8"))["results"]
    assert result["test_triple"]["tail_label"] == "MONDO:0005148"
    assert result["method"] == "gauss-newton"
    strongest = sorted(result["influences"], key=lambda each: -each["influence"])[:5]
    columns = ("train_head_label", "train_relation_label", "train_tail_label")
    header, *rows = printed[printed.rindex("train_head_label") :].splitlines()
    assert header.split() == [*columns, "influence"]
    assert len(rows) == len(strongest)
    for row, influence in zip(rows, strongest, strict=True):
        assert " ".join(row.split()).startswith(" ".join(influence[column] for column in columns))
        assert float(row.split()[-1]) == pytest.approx(influence["influence"], rel=1e-3)

"""Many runs, one after the other and side by side: whole, correct files, and memory that does not grow."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fault_injection import ROOT, finish, note_memory, start
from influence_examples import EVERYTHING, NUM_ENTITIES, NUM_RELATIONS, TRAINING, gradients_by_hand, make_model
from tracin_runs import WANTED, content_of, files  # noqa: F401 - `files` is a fixture
from tracin_runs import arguments as tracin_arguments

# Runs tracin_pytorch.py once for each line of a file of test triples, as a shell script of a user would.
LOOP = """
set -euo pipefail
while IFS=$'\\t' read -r head relation tail; do
    output="$OUT/$head.$relation.$tail.json"
    "$PYTHON" tracin_pytorch.py "$@" --test-triple "$head" "$relation" "$tail" --output "$output"
done
"""


def assert_influences(content, triple):
    """Compare a JSON output with a float64 backward loop of the test's own."""
    model = make_model()
    distinct = list(dict.fromkeys(map(tuple, TRAINING.tolist())))
    test, train = (gradients_by_hand(model, np.array(triples), EVERYTHING) for triples in ([triple], distinct))
    expected = 0.001 * (test @ train.T)[0].numpy()
    order = np.argsort(-np.abs(expected), kind="stable")[:10]
    assert [content["test_triple"][part] for part in ("head", "relation", "tail")] == list(triple)
    found = [influence["influence"] for influence in content["influences"]]
    np.testing.assert_allclose(found, expected[order], rtol=1e-3, atol=1e-5 * np.abs(expected).max())


def run_in_a_loop(files, out, triples):
    out.mkdir()
    lines = "".join(f"e{head}\tr{relation}\te{tail}\n" for head, relation, tail in triples)
    done = subprocess.run(
        ["bash", "-c", LOOP, "loop", *tracin_arguments(files)], cwd=ROOT, input=lines, text=True, capture_output=True,
        check=False, env=os.environ | {"PYTHON": sys.executable, "OUT": str(out), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(content_of(out)) == len(set(triples))
    for triple in triples:
        name = "e{}.r{}.e{}.json".format(*triple)
        assert_influences(json.loads((out / name).read_text()), triple)


def test_runs_in_a_bash_loop_end_with_whole_correct_files(files, tmp_path):
    run_in_a_loop(files, tmp_path / "out", WANTED[:2])


@pytest.mark.slow
def test_two_hundred_runs_in_a_bash_loop_end_with_whole_correct_files(files, tmp_path):
    every = [(h, r, t) for h in range(NUM_ENTITIES) for r in range(NUM_RELATIONS) for t in range(NUM_ENTITIES)]
    run_in_a_loop(files, tmp_path / "out", (every * 2)[:200])


@pytest.mark.parametrize("script", ["tracin_pytorch.py", "run_tracin.py"])
def test_eight_equal_runs_side_by_side_end_with_the_files_of_one(files, tmp_path, script):
    def given(out):
        wanted = ["--test-triples", files["test.txt"], "--output-dir", out]
        if script == "run_tracin.py":
            wanted = ["--test", files["test.txt"], "--output", out / "out.json", "--csv-output"]
        return tracin_arguments(files, *wanted, "--report", out / "report.html")

    assert finish(script, *given(tmp_path / "alone"), log=tmp_path / "log.txt") == 0
    logs = [tmp_path / f"log {number}.txt" for number in range(8)]
    running = [start(script, *given(tmp_path / "together"), log=log) for log in logs]
    for process, log in zip(running, logs, strict=True):
        process.join(timeout=300)
        assert process.exitcode == 0, log.read_text()
    assert content_of(tmp_path / "together") == content_of(tmp_path / "alone")


def test_eight_different_runs_side_by_side_in_one_directory_write_a_correct_file_each(files, tmp_path):
    running = []
    for number, triple in enumerate(WANTED[:8]):
        given = ["--test-triple", *triple, "--output", tmp_path / "out" / f"{number}.json"]
        log = tmp_path / f"log {number}.txt"
        running.append((start("tracin_pytorch.py", *tracin_arguments(files, *given), log=log), log))
    for process, log in running:
        process.join(timeout=300)
        assert process.exitcode == 0, log.read_text()
    assert sorted(content_of(tmp_path / "out")) == [f"{number}.json" for number in range(8)]
    for number, triple in enumerate(WANTED[:8]):
        assert_influences(json.loads((tmp_path / "out" / f"{number}.json").read_text()), triple)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_test_triples(files, tmp_path):
    measured, out = tmp_path / "memory.txt", tmp_path / "out"
    if not Path("/proc/self/statm").exists():
        pytest.skip("resident memory is read from /proc, which is Linux's")
    count = 3000
    files["test.txt"].write_text("".join(f"e{h}\tr{r}\te{t}\n" for h, r, t in (WANTED * count)[:count]))
    given = ["--test", files["test.txt"], "--output", out / "out.json", "--csv-output", "--use-optimized-tracin"]
    fault = (note_memory, measured, 500)
    assert finish("run_tracin.py", *tracin_arguments(files, *given), log=tmp_path / "log.txt", faults=[fault]) == 0
    results = json.loads((out / "out.json").read_text())["results"]
    assert len(results) == count
    resident = [int(line) for line in measured.read_text().splitlines()]
    assert len(resident) == 7
    # Holding the results of 2,500 test triples took 26 MB. The first 500 bring the libraries' own memory.
    assert max(resident) - resident[1] < 4e6
    assert_influences(results[-1], (WANTED * count)[count - 1])

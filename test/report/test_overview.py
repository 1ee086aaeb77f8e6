"""What the terminal shows of one prediction, and of several."""

import json
from pathlib import Path

import pytest
from command_lines import run
from project_files import COMMANDS, clean, project  # noqa: F401 - fixtures


def printed_above_files(finished):
    assert finished.code == 0, finished
    lines = finished.out.splitlines()
    written = next(number for number, line in enumerate(lines) if line.startswith("Written: "))
    return lines[:written], lines[written:]


@pytest.mark.parametrize("side", ["tail", "head"])
def test_several_predictions_take_a_line_each(project, side):
    finished = run(*COMMANDS["train"], "--inverse-triples")
    assert finished.code == 0, finished
    done = run(*COMMANDS["run"], "--model-path", "out/final_model.pt", "--predicted-side", side)
    (heading, *lines), below = printed_above_files(done)
    results = json.loads(Path("out/influences.json").read_text(encoding="utf-8"))["results"]
    assert heading.startswith(f"{len(results)} predictions (explained by ")
    assert len(lines) == len(results) > 1
    for line, result in zip(lines, results, strict=True):
        asked, prediction = result["test_triple"], result["prediction"]
        rank = prediction["rank"] if side == "tail" else prediction["head_rank"]
        names = f"{asked['head_label']} — {asked['relation_label']} → {asked['tail_label']}"
        assert line.split(None, 1)[0] == f"{rank:g}"
        assert line.split(None, 1)[1].startswith(f"{names}  because of ")
        strongest = max(result["influences"], key=lambda row: row["influence"])
        proponent = f"{strongest['train_head_label']} — {strongest['train_relation_label']}"
        assert f"because of {proponent} → {strongest['train_tail_label']} ({strongest['influence']:+.3g})" in line
    assert below[-1].endswith("--report FILE.html makes a page of them")


def test_one_prediction_keeps_its_table(project):
    above, below = printed_above_files(run(*COMMANDS["tracin"]))
    assert above[0].startswith("Prediction: ")
    assert "Proponents (the model believes it because of):" in above
    assert below == ["Written: out/influences.json"]


def test_the_note_knows_the_page(project):
    _, below = printed_above_files(run(*COMMANDS["run"], "--report", "out/page.html"))
    assert below[-1] == "The influences and paths of each prediction are in what was written"

"""Predictions about what no training triple has, and candidates that rank each other out: remarked on."""

import json
from pathlib import Path

import pytest
from command_lines import run
from project_files import COMMANDS, clean, project, write  # noqa: F401


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        (("aspirin", "treats", "PTGS2"), ["tail"]),
        (("PTGS2", "treats", "aspirin"), ["head"]),
        (("aspirin", "inhibits", "ibuprofen"), ["relation"]),
        (("PTGS2", "inhibits", "aspirin"), ["head", "relation"]),
        (("aspirin", "treats", "ibuprofen"), []),
    ],
)
def test_what_no_training_triple_has_is_said_in_one_sentence(project, values, parts):
    lines = Path("train.tsv").read_text(encoding="utf-8").splitlines(keepends=True)
    write("train.tsv", "".join(line for line in lines if "PTGS2" not in line and "inhibits" not in line))
    assert run(*COMMANDS["train"]).code == 0
    Path("out/final_model.pt").replace("model.pt")
    done = run(*COMMANDS["tracin"], "--test-triple", *values, "--report", "out/report.html")
    assert done.code == 0, done
    prediction = json.loads(Path("out/influences.json").read_text())["prediction"]
    assert prediction.get("untrained", []) == parts
    sentence = f"No training triple has the {' and the '.join(parts)} of this prediction: "
    if parts:
        assert prediction["remark"].startswith(sentence)
    for text in (done.out, Path("out/report.html").read_text(encoding="utf-8")):
        assert (sentence in text) == bool(parts)


def test_candidates_for_one_question_are_remarked_on(project):
    write("candidates.txt", "".join(f"aspirin\tinhibits\t{tail}\n" for tail in ("aspirin", "ibuprofen", "head ache")))
    arguments = ("rank_pytorch", "--model-path", "model.pt", "--train", "train.tsv", "--valid", "valid.tsv",
                 "--entity-to-id", "entity_to_id.tsv", "--relation-to-id", "relation_to_id.tsv", "-o", "ranks.tsv",
                 "--device", "cpu")  # fmt: skip
    done = run(*arguments, "--test", "candidates.txt")
    assert done.code == 0, done
    assert "3 test triples ask 1 question (head and relation): all count as known to be right" in done.err
    done = run(*arguments, "--test", "valid.tsv")
    assert "candidates are not ranked against each other" not in done.err

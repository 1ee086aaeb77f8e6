"""verify_tracin.py through the command line: against trainings on reduced files, killed and started again, refused."""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from command_lines import assert_refused, run
from conftest import ENTITIES, RELATIONS, TRAIN, VALID, Graph, mapping_lines, triple_lines
from page_content import Page
from project_files import COMMANDS, MAPPINGS, clean, project, write  # noqa: F401 - fixtures
from training_runs import checkpoint_of

from conve_tracin.checkpoint.native import build_model, load_checkpoint
from conve_tracin.errors import InputError
from conve_tracin.report import verification as report
from conve_tracin.settings import VerificationOptions
from conve_tracin.verification import train as training_again

FILES = ("--influences", "influences.json", "--model-path", "model.pt", "--train", "train.tsv", *MAPPINGS)
KNOWN = ("--known", "valid.tsv")
VERIFY = (*FILES, *KNOWN, "--device", "cpu", "--num-workers", "1", "--output", "out/verified.json")
PREDICTION = (1, 0, 4)
# Two of the head's own, one of neither end, and one that speaks against it.
LISTED = [((1, 0, 2), 0.5), ((0, 1, 5), 0.2), ((1, 1, 5), 0.3), ((0, 0, 4), -0.4), ((4, 2, 3), 0.1)]


def explained(triple=PREDICTION, listed=LISTED, side=None):
    """The JSON of an influence script, with the members that count."""
    ends = ("head", "relation", "tail")
    rows = [
        {f"train_{end}": value for end, value in zip(ends, row, strict=True)} | {"influence": influence}
        for row, influence in listed
    ]
    more = {} if side is None else {"prediction": {"predicted_side": side}}
    return {"test_triple": dict(zip(ends, triple, strict=True)), **more, "influences": rows}


@pytest.fixture
def influences(project):
    """Files of a project with the influences on one prediction."""
    Path("influences.json").write_text(json.dumps(explained()))
    return project


def verified(*arguments, output="out/verified.json"):
    done = run("verify_tracin", *VERIFY, *arguments, "--output", output)
    assert (done.code, done.trouble) == (0, None), done
    return json.loads(Path(output).read_text(encoding="utf-8"))


def only(*arguments):
    (result,) = verified(*arguments)["results"]
    return result


def ids_of(rows):
    return [tuple(row[f"train_{end}"] for end in ("head", "relation", "tail")) for row in rows]


def without(triples):
    """The lines of train.tsv without some triples."""
    unwanted = {"\t".join((ENTITIES[h], RELATIONS[r], ENTITIES[t])) for h, r, t in triples}
    lines = Path("train.tsv").read_text(encoding="utf-8").splitlines()
    return "".join(f"{line}\n" for line in lines if line not in unwanted)


def trained_by_the_script(train_lines, *arguments):
    """Train on a file of its own with train_pytorch.py; return the final model."""
    write("reduced.tsv", train_lines)
    done = run(*COMMANDS["train"], "--train", "reduced.tsv", "-o", "reduced", *arguments)
    assert (done.code, done.trouble) == (0, None), done
    model = build_model(load_checkpoint("reduced/final_model.pt"))
    shutil.rmtree("reduced")
    return model


def scores_by_hand(model, entity, row):
    return [model.score(*(torch.tensor([value]) for value in (entity, row, other))).item() for other in range(6)]


# ---------------------------------------------------------------------------------------------------------------
# Against trainings on reduced files


def test_a_prediction_competes_with_the_other_predictions_of_its_question_as_in_its_explanation(influences):
    alone = only("--seeds", "1", "--num-epochs", "1")
    others = [(1, 0, 0), (1, 0, 1), (1, 0, 3)]
    Path("influences.json").write_text(json.dumps({"results": [explained(), *map(explained, others)]}))
    first, *_ = verified("--seeds", "1", "--num-epochs", "1", "--together")["results"]
    for kind in ("model", "everything"):
        assert first[kind] == alone[kind]


def test_a_proponent_that_is_listed_twice_is_left_out_once(influences):
    Path("influences.json").write_text(json.dumps(explained(listed=[*LISTED, LISTED[0]])))
    assert ids_of(only("--seeds", "1", "--num-epochs", "1", "--remove", "2")["proponents"]) == [(1, 0, 2)]


def test_scores_and_ranks_are_those_of_models_trained_on_the_reduced_files(influences):
    result = only("--seeds", "2", "--seed", "7", "--remove", "2", "--num-epochs", "3")
    assert ids_of(result["proponents"]) == [(1, 0, 2), (1, 1, 5)]
    left_out = {
        "everything": [(), ()],
        "without_proponents": [ids_of(result["proponents"])] * 2,
        "without_others": [ids_of(rows) for rows in result["others"]],
    }
    known = {tail for head, relation, tail in np.concatenate([TRAIN, VALID]).tolist() if (head, relation) == (1, 0)}
    for kind, triples in left_out.items():
        for number, seed in enumerate((7, 8)):
            model = trained_by_the_script(without(triples[number]), "--random-seed", seed, "--num-epochs", "3")
            scores = scores_by_hand(model, 1, 0)
            rivals = [score for tail, score in enumerate(scores) if tail not in known]
            # The weights are the same bits (test_retrain.py); the score is rounded elsewhere.
            assert result[kind]["scores"][number] == pytest.approx(scores[4], abs=1e-6)
            assert result[kind]["ranks"][number] == 1 + sum(score > scores[4] for score in rivals)
            assert result[kind]["leads"][number] == pytest.approx(scores[4] - max(rivals))
        ranks = result[kind]["ranks"]
        assert result[kind]["rank"] == {"median": np.median(ranks), "lowest": min(ranks), "highest": max(ranks)}
        assert result[kind]["score"]["mean"] == pytest.approx(np.mean(result[kind]["scores"]))
        deviation = np.std(result[kind]["scores"], ddof=1)
        assert result[kind]["score"]["standard_deviation"] == pytest.approx(deviation)
    own = scores_by_hand(build_model(load_checkpoint("model.pt")), 1, 0)
    assert result["model"]["score"] == pytest.approx(own[4], abs=1e-6)


def test_the_head_is_verified_if_it_was_explained(influences):
    words = ("--inverse-triples", "--training-approach", "kvsall")
    assert run(*COMMANDS["train"], *words, "-o", "with_inverse").code == 0
    Path("influences.json").write_text(json.dumps(explained(side="head")))
    arguments = ("--model-path", "with_inverse/final_model.pt", "--seeds", "1", "--seed", "3", "--num-epochs", "2")
    result = only(*arguments)
    assert result["predicted_side"] == "head"
    everything = Path("train.tsv").read_text(encoding="utf-8")
    model = trained_by_the_script(everything, *words, "--random-seed", 3, "--num-epochs", "2")
    assert result["everything"]["scores"] == pytest.approx([scores_by_hand(model, 4, 1)[1]], abs=1e-6)
    message = assert_refused(run("verify_tracin", *VERIFY, "--output", "out/other.json"))
    assert message.startswith("influences.json: explains the head, and model.pt was trained without inverse triples")


def test_all_copies_of_a_repeated_triple_are_left_out_and_told(influences):
    copied = Path("train.tsv").read_text(encoding="utf-8") + "ibuprofen\ttreats\thead ache\n"
    write("train.tsv", copied)
    result = only("--seeds", "1", "--seed", "4", "--remove", "1", "--num-epochs", "2")
    assert [row["count"] for row in result["proponents"]] == [2]
    model = trained_by_the_script(without([(1, 0, 2)]), "--random-seed", 4, "--num-epochs", "2")
    assert result["without_proponents"]["scores"] == pytest.approx([scores_by_hand(model, 1, 0)[4]], abs=1e-6)
    assert "all copies were left out (1 more lines)" in " ".join(result["remarks"])


def test_the_control_is_drawn_for_each_seed_and_has_no_proponent_and_not_the_prediction(influences):
    write("train.tsv", Path("train.tsv").read_text(encoding="utf-8") + "ibuprofen\ttreats\tMONDO:0005148\n")
    result = only("--seeds", "3", "--remove", "2", "--num-epochs", "1")
    proponents = ids_of(result["proponents"])
    drawn = [ids_of(rows) for rows in result["others"]]
    assert [len(rows) for rows in drawn] == [2, 2, 2]
    everything = set(map(tuple, TRAIN.tolist()))
    for rows in drawn:
        assert set(rows) <= everything - set(proponents)
    assert "never left out" in " ".join(result["remarks"])


# ---------------------------------------------------------------------------------------------------------------
# Several predictions


def test_predictions_share_the_trainings_with_everything_and_else_have_their_own(influences):
    Path("other.json").write_text(json.dumps({"results": [explained((0, 0, 3), [((0, 0, 2), 1.0)])]}))
    arguments = ("--seeds", "2", "--remove", "2", "--num-epochs", "1")
    alone = only(*arguments)
    both = verified("--influences", "influences.json", "other.json", *arguments)["results"]
    assert (both[0]["proponents"], both[0]["others"]) == (alone["proponents"], alone["others"])
    for kind in ("everything", "without_proponents", "without_others"):
        assert both[0][kind]["scores"] == pytest.approx(alone[kind]["scores"], abs=1e-6)
    assert ids_of(both[1]["proponents"]) == [(0, 0, 2)]
    assert "The file lists 1 proponent, fewer than the 2 asked for" in both[1]["remarks"][0]


def test_together_the_proponents_of_all_predictions_are_left_out_at_once(influences):
    Path("other.json").write_text(json.dumps(explained((5, 2, 4), [((0, 0, 2), 1.0), ((1, 0, 2), 0.1)])))
    arguments = ("--influences", "influences.json", "other.json", "--together", "--seeds", "1", "--seed", "2")
    first, second = verified(*arguments, "--remove", "2", "--num-epochs", "2")["results"]
    removed = {(1, 0, 2), (1, 1, 5), (0, 0, 2)}
    assert set(ids_of(first["proponents"])) == removed == set(ids_of(second["proponents"]))
    assert first["others"] == second["others"]
    assert len(set(ids_of(first["others"][0])) - removed) == 3
    model = trained_by_the_script(without(removed), "--random-seed", 2, "--num-epochs", "2")
    assert first["without_proponents"]["scores"] == pytest.approx([scores_by_hand(model, 1, 0)[4]], abs=1e-6)
    assert second["without_proponents"]["scores"] == pytest.approx([scores_by_hand(model, 5, 2)[4]], abs=1e-6)
    assert "The proponents of all 2 predictions were left out together." in first["remarks"]


def test_predictions_without_a_proponent_are_named_and_passed_over(influences):
    Path("other.json").write_text(json.dumps(explained((5, 2, 4), [((0, 0, 2), -1.0)])))
    done = run("verify_tracin", *VERIFY, "--influences", "influences.json", "other.json", "--num-epochs", "1")
    assert "no proponent is listed: PTGS2 — associated with → MONDO:0005148" in done.out
    content = json.loads(Path("out/verified.json").read_text())
    assert len(content["results"]) == 1
    assert content["without_proponents_listed"] == ["PTGS2 — associated with → MONDO:0005148"]
    shutil.rmtree("out")
    message = assert_refused(run("verify_tracin", *VERIFY, "--influences", "other.json"))
    assert message.startswith("other.json: lists no proponent")


def test_an_entity_that_loses_its_last_triple_is_named(influences):
    listed = [((0, 1, 5), 0.3), ((1, 1, 5), 0.2), ((5, 2, 2), 0.1), ((2, 2, 5), 0.1)]
    Path("influences.json").write_text(json.dumps(explained(listed=listed)))
    result = only("--seeds", "1", "--num-epochs", "1")
    assert "no training triple is left of PTGS2: models cannot know them" in " ".join(result["remarks"])


# ---------------------------------------------------------------------------------------------------------------
# Stopped and started again


@pytest.fixture
def trainings(monkeypatch):
    """The jobs that are done, and after how many the run is to break."""
    done, limit = [], [math.inf]
    train = training_again.train_and_measure

    def counted(job, *arguments, **settings):
        if len(done) >= limit[0]:
            raise KeyboardInterrupt
        done.append((job[0], *job[1].tolist()))
        return train(job, *arguments, **settings)

    monkeypatch.setattr(training_again, "train_and_measure", counted)
    return done, limit


def test_a_run_that_was_stopped_goes_on_and_ends_as_one_that_never_was(influences, trainings):
    done, limit = trainings
    arguments = ("--seeds", "2", "--num-epochs", "2")
    whole = verified(*arguments, output="out/whole.json")
    everything = done[:]
    assert len(everything) == len(set(everything)) == 6
    done.clear()
    limit[0] = 4
    stopped = run("verify_tracin", *VERIFY, *arguments)
    assert stopped.code == 130
    assert [path.name for path in Path("out").iterdir() if "verified" in path.name] == ["verified.json.unfinished"]
    limit[0] = math.inf
    assert verified(*arguments) == whole
    assert done == everything
    assert sorted(path.name for path in Path("out").iterdir()) == ["verified.json", "whole.json"]


@pytest.mark.parametrize("change", ["influences", "seeds", "epochs", "train", "known"])
def test_results_for_other_inputs_are_not_taken(influences, trainings, change):
    done, limit = trainings
    limit[0] = 2
    assert run("verify_tracin", *VERIFY, "--seeds", "2", "--num-epochs", "2").code == 130
    done.clear()
    limit[0] = math.inf
    arguments = {"seeds": ("--seed", "77"), "epochs": ("--num-epochs", "1"), "known": ("--known", "test.tsv")}
    if change == "influences":
        Path("influences.json").write_text(json.dumps(explained(listed=LISTED[1:])))
    if change == "train":
        write("train.tsv", without([(3, 2, 3)]))
    finished = run("verify_tracin", *VERIFY, "--seeds", "2", "--num-epochs", "2", *arguments.get(change, ()))
    assert finished.code == 0
    assert "belongs to a run with other settings or files; this run starts afresh" in finished.err
    assert len(done) == 6


# ---------------------------------------------------------------------------------------------------------------
# What is told, and what is refused


def test_it_is_said_beforehand_how_long_it_takes_and_then_what_was_found(influences):
    done = run("verify_tracin", *VERIFY, "--num-epochs", "2", "--remove", "3", "--report", "out/page.html")
    assert re.search(r"^9 trainings of 2 epochs: about \d+ seconds? \(", done.err, re.MULTILINE)
    result = json.loads(Path("out/verified.json").read_text())["results"][0]
    ranks = {kind: result[kind]["rank"]["median"] for kind in ("without_proponents", "without_others")}
    assert result["sentence"].startswith("Without these three facts the model, trained three times, ranks it ")
    assert result["sentence"] in done.out
    assert result["verdict"] in done.out
    for rank in ranks.values():
        assert report.place(rank) in result["sentence"]
    page = Page(Path("out/page.html").read_text(encoding="utf-8"))
    assert result["sentence"] in page.texts("p", "verified")
    assert len(page.attributes("circle")) == 9
    assert all(re.search(r"\S \+\d", text) for text in page.texts("li")[:3])
    assert "Written: out/page.html" in done.out


def test_names_on_the_page_stay_text(influences):
    hostile = "<script>alert(1)</script>"
    for name in ("train.tsv", "valid.tsv", "test.tsv"):
        write(name, Path(name).read_text(encoding="utf-8").replace("head ache", hostile))
    write("entity_to_id.tsv", "".join(mapping_lines(tuple(hostile if e == "head ache" else e for e in ENTITIES))))
    assert run(*COMMANDS["train"], "-o", "hostile").code == 0
    verified("--model-path", "hostile/final_model.pt", "--num-epochs", "1", "--report", "out/page.html")
    page = Page(Path("out/page.html").read_text(encoding="utf-8"))
    assert page.attributes("script") == []
    assert hostile in "".join(page.texts("li"))


@pytest.mark.parametrize(
    ("value", "written"),
    [(1, "1st"), (2, "2nd"), (3, "3rd"), (4, "4th"), (11, "11th"), (112, "112th"), (21, "21st"), (2.5, "in place 2.5")],
)
def test_places_are_written_as_people_do(value, written):
    assert report.place(value) == written


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(0.2, "1 second"), (45, "45 seconds"), (130, "2.2 minutes"), (1900, "32 minutes"), (9000, "2.5 hours")],
)
def test_durations_are_written_in_a_unit_that_suits(seconds, written):
    assert report.duration(seconds) == written


def save(change):
    content = checkpoint_of("model.pt")
    change(content)
    torch.save(content, "model.pt")


REFUSED = {
    "converted": (
        lambda: shutil.copy("converted.pt", "model.pt"),
        "model.pt: is converted for PyKEEN; give",
    ),
    "no settings": (
        lambda: save(lambda content: content.pop("training_config")),
        "model.pt: does not tell how it was trained (training_config)",
    ),
    "PyKEEN's": (
        lambda: torch.save(checkpoint_of("converted.pt")["model_state_dict"], "model.pt"),
        "model.pt: is PyKEEN's and does not tell how it was trained",
    ),
    "no JSON": (lambda: Path("influences.json").write_text("{"), "influences.json:1: is not valid JSON"),
    "no triple": (
        lambda: Path("influences.json").write_text(json.dumps(explained(listed=[((4, 0, 4), 1.0)]))),
        "influences.json: its proponent MONDO:0005148 — treats → MONDO:0005148 is not in train.tsv",
    ),
    "no training file": (lambda: Path("train.tsv").unlink(), "train.tsv: "),
    "too few left": (
        lambda: write("train.tsv", "ibuprofen\ttreats\thead ache\nibuprofen\tinhibits\tPTGS2\n"),
        "influences.json: its proponent",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_verified_is_one_clear_line_and_nothing_is_written(influences, name):
    spoil, message = REFUSED[name]
    spoil()
    finished = run("verify_tracin", *VERIFY)
    assert assert_refused(finished, began=True).startswith(message), finished
    assert not Path("out").exists()


def test_another_training_file_is_warned_of(influences):
    write("train.tsv", without([(3, 2, 3)]))
    done = run("verify_tracin", *VERIFY, "--num-epochs", "1")
    assert "model.pt: was trained on other triples than those of --train" in done.err


def test_training_for_far_fewer_epochs_than_the_model_had_is_warned_of(influences):
    checkpoint = torch.load("model.pt", weights_only=True)
    torch.save(checkpoint | {"epoch": 4}, "model.pt")
    said = "has trained for 4 epochs, and is trained again for 1 (asked for)"
    assert said in run("verify_tracin", *VERIFY, "--num-epochs", "1").err
    assert "is trained again" not in run("verify_tracin", *VERIFY, "--num-epochs", "2").err


def test_values_from_python_are_checked():
    files = dict.fromkeys(("model_path", "train", "entity_to_id", "relation_to_id", "output"), "x")
    with pytest.raises(InputError, match="remove is 0; it must be a whole number of at least 1"):
        VerificationOptions(influences=["x"], **files, remove=0)


# ---------------------------------------------------------------------------------------------------------------
# A graph whose reasons are known


def test_a_prediction_that_rests_on_one_fact_is_told_from_one_that_rests_on_all(tmp_path, monkeypatch):
    """x_i is paired with y_i and praises it; all trust the hub."""
    monkeypatch.chdir(tmp_path)
    count = 12
    graph = Graph(
        train=np.array(
            [(i, 0, count + i) for i in range(count)]
            + [(i, 1, count + i) for i in range(1, count)]
            + [(i, 2, 2 * count) for i in range(1, count)]
        ),
        valid=np.array([(0, 1, count)]),
        test=np.array([(0, 2, 2 * count)]),
        entities=(*(f"x{i}" for i in range(count)), *(f"y{i}" for i in range(count)), "hub"),
        relations=("paired with", "praises", "trusts"),
    )
    for split in ("train", "valid", "test"):
        write(f"{split}.tsv", "".join(triple_lines(graph, getattr(graph, split))))
    write("entity_to_id.tsv", "".join(mapping_lines(graph.entities)))
    write("relation_to_id.tsv", "".join(mapping_lines(graph.relations)))
    done = run(
        *COMMANDS["train"], "--training-approach", "kvsall", "--inverse-triples", "--loss", "ce",
        "--embedding-dim", "16", "--embedding-height", "4", "--input-dropout", "0.1", "--feature-map-dropout", "0.1",
        "--output-dropout", "0.1", "--learning-rate", "0.02", "--batch-size", "16",
    )  # fmt: skip
    assert done.code == 0, done
    one, all_alike = ((0, 0, count), 1.0), ((5, 2, 2 * count), 1.0)
    Path("one.json").write_text(json.dumps(explained((0, 1, count), [one])))
    Path("all.json").write_text(json.dumps(explained((0, 2, 2 * count), [all_alike])))
    files = ("--model-path", "out/final_model.pt", "--influences", "one.json", "all.json")
    first, second = verified(*files, "--num-epochs", "28", "--seeds", "2", "--remove", "1")["results"]
    assert first["without_proponents"]["rank"]["lowest"] > 3 >= first["without_others"]["rank"]["highest"]
    assert first["beyond_seeds"] is True
    assert second["beyond_seeds"] is False
    assert second["without_proponents"]["rank"]["median"] <= 2

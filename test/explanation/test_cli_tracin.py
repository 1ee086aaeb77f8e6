"""tracin_pytorch.py through its command line: files in, documented JSON out, one line for bad input."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from influence_examples import EVERYTHING, NUM_RELATIONS, TRAINING, make_model, once_each, products_by_hand
from native_files import (
    ENTITIES,
    arguments,
    files,  # noqa: F401
    run,
    save_model,
)

import tracin_pytorch
from conve_tracin.errors import InputError
from conve_tracin.explanation import read as reading
from conve_tracin.influence.scorers import ConvEScorer
from conve_tracin.influence.training_loss import Objective, TrainingLoss

ROOT = Path(__file__).parents[2]


def assert_influences(content, expected, *, rtol=1e-4):
    training, expected, counts = once_each(TRAINING, expected)
    order = np.argsort(-np.abs(expected), kind="stable")[: content["top_k"]]
    frame = pd.DataFrame(content["influences"])
    np.testing.assert_array_equal(frame[["train_head", "train_relation", "train_tail"]], training[order])
    assert [row.get("count", 1) for row in content["influences"]] == counts[order].tolist()
    np.testing.assert_allclose(frame["influence"], expected[order], rtol=rtol, atol=1e-6 * np.abs(expected).max())


def test_documented_json(files):
    content = run(files, "--test-triple", "0", "1", "2", "--output", str(files["out.json"]), "--top-k", "4")
    assert (content["top_k"], content["learning_rate"], content["method"]) == (4, 0.001, "tracin")
    assert [content["test_triple"][part] for part in ("head", "relation", "tail")] == [0, 1, 2]
    assert content["test_triple"]["tail_label"] == "café"
    assert_influences(content, 0.001 * products_by_hand(make_model(), EVERYTHING)[0].numpy())
    assert content["influences"][0]["train_tail_label"] == ENTITIES[content["influences"][0]["train_tail"]]


@pytest.mark.parametrize("engine", ["forward", "reference"])
def test_labels_layers_learning_rate_and_engine(files, engine):
    content = run(
        files, "--test-triple", "aspirin", "causes", "café", "--output", str(files["out.json"]),
        "--use-last-layers-only", "--num-last-layers", "4", "--learning-rate", "0.5", "--batch-size", "1",
        "--engine", engine, "--device", "cpu",
    )  # fmt: skip
    names = ["fc.bias", "fc.weight", "bn1.bias", "bn1.weight"]
    assert_influences(content, 0.5 * products_by_hand(make_model(), names)[0].numpy())


@pytest.mark.parametrize("engine", ["forward", "reference"])
def test_the_training_loss_is_that_of_the_checkpoint(files, engine, caplog):
    training = {"training_approach": "kvsall", "loss": "ce"}
    save_model(files["model.pt"], make_model(dtype=torch.float32), training_config=training)
    flags = ["--training-loss", "--engine", engine, "--output", str(files["out.json"])]
    content = run(files, "--test-triple", "0", "1", "2", *flags)
    assert content["training_loss"] is True
    method = TrainingLoss(ConvEScorer(make_model()), objective=Objective.of(training), training_triples=TRAINING).loop
    expected = 0.001 * method.products([[0, 1, 2]], TRAINING)[0].numpy()
    assert_influences(content, expected)
    caplog.set_level("INFO")
    content = run(files, "--test-triple", "0", "1", "2", *flags, "--method", "gauss-newton")
    assert "training_loss" not in content
    assert "--training-loss has no effect with --method gauss-newton" in caplog.text


def test_many_test_triples_write_the_files_of_single_runs(files, tmp_path):
    listed = tmp_path / "test triples.txt"
    listed.write_text("0 1 2\nCHEBI:4\tcauses\tCHEBI:4\n", encoding="utf-8")
    out = tmp_path / "many"
    tracin_pytorch.main(arguments(files, "--test-triples", str(listed), "--output-dir", str(out)))
    assert sorted(path.name for path in out.iterdir() if not path.name.startswith(".")) == [
        "triple_0_1_2.json",
        "triple_3_1_3.json",
    ]
    alone = run(files, "--test-triple", "3", "1", "3", "--output", str(files["out.json"]))
    together = json.loads((out / "triple_3_1_3.json").read_text(encoding="utf-8"))
    expected = 0.001 * products_by_hand(make_model(), EVERYTHING)[1].numpy()
    assert_influences(alone, expected)
    assert_influences(together, expected)


def test_several_checkpoints_bring_their_learning_rates(files, tmp_path):
    other = make_model(dtype=torch.float32)
    with torch.no_grad():
        other.fc.weight.mul_(0.5)
    save_model(files["model.pt"], make_model(dtype=torch.float32), learning_rate=0.1)
    save_model(tmp_path / "other.pt", other, learning_rate=0.2)
    both = [files["model.pt"], tmp_path / "other.pt"]
    content = run(files, "--test-triple", "0", "1", "2", "--output", str(files["out.json"]), model=both)
    expected = 0.1 * products_by_hand(make_model(), EVERYTHING)[0] + 0.2 * products_by_hand(other, EVERYTHING)[0]
    assert content["learning_rate"] == [0.1, 0.2]
    assert_influences(content, expected.numpy())


def test_inverse_models_use_the_even_rows(files):
    torch.manual_seed(3)
    plain = make_model(dtype=torch.float32)
    sizes = plain.config.as_dict() | {"num_relations": 2 * NUM_RELATIONS}
    doubled = type(plain)(**sizes)
    state = plain.state_dict()
    rows = torch.randn(2 * NUM_RELATIONS, sizes["embedding_dim"])
    rows[::2] = state["relation_embeddings.weight"]
    doubled.load_state_dict(state | {"relation_embeddings.weight": rows})
    save_model(files["model.pt"], doubled.eval(), training_config={"inverse_triples": True})
    content = run(files, "--test-triple", "0", "1", "2", "--output", str(files["out.json"]))
    assert_influences(content, 0.001 * products_by_hand(make_model(), EVERYTHING)[0].numpy())


def test_readable_names(files, tmp_path, capsys):
    (tmp_path / "names.txt").write_text("Aspirin (drug)\t0\n", encoding="utf-8")
    (tmp_path / "edges.json").write_text('{"{\\"predicate\\": \\"biolink:causes\\"}": "causes"}')
    content = run(
        files, "--test-triple", "0", "1", "2", "--output", str(files["out.json"]),
        "--node-name-dict", str(tmp_path / "names.txt"), "--edge-map", str(tmp_path / "edges.json"),
    )  # fmt: skip
    assert content["test_triple"]["head_label"] == "Aspirin (drug)"
    assert content["test_triple"]["relation_label"] == "biolink:causes"
    assert "Aspirin (drug) — biolink:causes → café" in capsys.readouterr().out


@pytest.mark.parametrize(("triple", "known"), [((0, 1, 2), []), ((0, 1, 5), []), ((0, 1, 5), [4])])
def test_the_prediction_itself_is_scored_and_ranked(files, tmp_path, triple, known, capsys):
    more = []
    if known:
        more = ["--known", str(tmp_path / "valid.txt")]
        (tmp_path / "valid.txt").write_text("".join(f"aspirin\tcauses\t{ENTITIES[tail]}\n" for tail in known))
    content = run(files, "--test-triple", *map(str, triple), "--output", str(files["out.json"]), *more)
    head, relation, tail = triple
    with torch.no_grad():
        scores = make_model(dtype=torch.float32)(torch.tensor([head]), torch.tensor([relation]))[0].tolist()
    trained = {t for h, r, t in TRAINING.tolist() if (h, r) == (head, relation)}
    rivals = [entity for entity in range(len(ENTITIES)) if entity not in trained | {tail, *known}]
    expected = {
        "score": pytest.approx(scores[tail], rel=1e-5),
        "rank": 1 + sum(scores[rival] > scores[tail] for rival in rivals),
        "possible_tails": len(rivals) + 1,
        "in_training": tail in trained,
    }
    # What the others hold is tested in test/report/test_honest_outputs.py.
    assert {name: content["prediction"].pop(name) for name in expected} == expected
    assert content["prediction"].keys() == {"tail_standing", "warnings"}
    line = f"  Rank {expected['rank']} of {expected['possible_tails']} possible tails, score {scores[tail]:.2f}"
    second_line = capsys.readouterr().out.splitlines()[1]
    assert second_line == line + ("; it is itself a training triple" if expected["in_training"] else "")


def test_results_are_written_before_anything_is_printed(files, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.print", lambda *_, **__: (_ for _ in ()).throw(BrokenPipeError))
    more = ["--test-triple", "0", "1", "2", "--output", str(files["out.json"]), "--report", str(tmp_path / "page.html")]
    with pytest.raises(BrokenPipeError):
        tracin_pytorch.main(arguments(files, *more))
    assert files["out.json"].exists()
    assert (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--test-triple", "9", "1", "2"], "9"),
        (["--test-triple", "0", "1", "nobody"], "nobody"),
        (["--test-triple", "0", "1", "2", "--use-last-layers-only", "--num-last-layers", "99"], "num-last-layers"),
        (["--test-triple", "0", "1", "2", "--device", "cuda:7"], "--device cuda:7: not available here"),
        (["--test-triple", "0", "1", "2", "--device", "meta"], "--device meta: use auto, cpu, cuda or cuda:N"),
        (["--test-triple", "0", "1", "2", "--device", "gpu"], "--device gpu: use auto, cpu, cuda or cuda:N"),
    ],
)
def test_bad_values_are_named(files, more, message):
    with pytest.raises(InputError, match=message):
        run(files, *more, "--output", str(files["out.json"]))
    assert not files["out.json"].exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--output", "{train}"], r"train\.txt: is an input, which --output would replace"),
        (["--output", "{model}"], r"model\.pt: is an input"),
        (["--output", "{out}", "--report", "{train}"], r"train\.txt: is an input, which --report would replace"),
        (["--output", "{out}", "--report", "{out}"], "--output and --report name the same file"),
        (["--output", "{folder}"], "folder: is a directory"),
        (["--output", "{train}/out.json"], r"cannot be written, as .*train\.txt is a file"),
    ],
)
def test_unusable_outputs_are_named_before_the_work(files, tmp_path, more, message):
    (tmp_path / "folder").mkdir()
    places = {"train": files["train.txt"], "model": files["model.pt"], "out": files["out.json"]}
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    given = [part.format(folder=tmp_path / "folder", **places) for part in more]
    # Without training triples it fails later, whatever the outputs are.
    files["train.txt"].write_bytes(b"")
    with pytest.raises(InputError, match=message):
        tracin_pytorch.main(arguments(files, "--test-triple", "0", "1", "2", *given))
    files["train.txt"].write_bytes(before[files["train.txt"]])
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_a_file_is_no_output_directory(files):
    given = ["--test-triples", str(files["train.txt"]), "--output-dir", str(files["train.txt"])]
    with pytest.raises(InputError, match=r"train\.txt: is a file; --output-dir needs a directory"):
        tracin_pytorch.main(arguments(files, *given))


def test_a_directory_stands_for_its_checkpoints(files, tmp_path):
    other = make_model(dtype=torch.float32)
    with torch.no_grad():
        other.fc.weight.mul_(0.5)
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    save_model(folder / "checkpoint_epoch_10.pt", make_model(dtype=torch.float32), learning_rate=0.1)
    save_model(folder / "checkpoint_epoch_9.pt", other, learning_rate=0.2)
    content = run(files, "--test-triple", "0", "1", "2", "--output", str(files["out.json"]), model=[folder])
    expected = 0.1 * products_by_hand(make_model(), EVERYTHING)[0] + 0.2 * products_by_hand(other, EVERYTHING)[0]
    assert content["learning_rate"] == [0.2, 0.1]
    assert_influences(content, expected.numpy())


def test_a_test_triple_is_found_by_its_names(files, tmp_path, capsys):
    (tmp_path / "names.txt").write_text("Aspirin (drug)\t0\nPain\t1\nPain\t2\n", encoding="utf-8")
    (tmp_path / "edges.json").write_text('{"{\\"predicate\\": \\"biolink:causes\\"}": "causes"}')
    more = ["--node-name-dict", str(tmp_path / "names.txt"), "--edge-map", str(tmp_path / "edges.json")]
    triple = ["--test-triple", "Aspirin (drug)", "biolink:causes", "café"]
    content = run(files, *triple, "--output", str(files["out.json"]), *more)
    assert [content["test_triple"][member] for member in ("head", "relation", "tail")] == [0, 1, 2]
    (tmp_path / "test.txt").write_text("Aspirin (drug)\tbiolink:causes\t5\n", encoding="utf-8")
    many = ["--test-triples", str(tmp_path / "test.txt"), "--output-dir", str(tmp_path / "many")]
    tracin_pytorch.main(arguments(files, *many, *more))
    assert (tmp_path / "many/triple_0_1_5.json").exists()
    with pytest.raises(
        InputError, match=r"tail: 'Pain' is the name of 2: 'head ache', 'café'; give one of these labels"
    ):
        run(files, "--test-triple", "0", "causes", "Pain", "--output", str(files["out.json"]), *more)
    with pytest.raises(InputError, match=r"head: .*Aspirin \(drug\)"):
        run(files, *triple, "--output", str(files["out.json"]))


def test_weights_that_count_twice_are_pointed_out(files, tmp_path, caplog):
    other = make_model(dtype=torch.float32)
    with torch.no_grad():
        other.fc.weight.mul_(0.5)
    paths = [files["model.pt"], tmp_path / "other.pt", tmp_path / "best_model.pt"]
    save_model(paths[1], other)
    save_model(paths[2], make_model(dtype=torch.float32))
    triples = tmp_path / "test.txt"
    triples.write_text("aspirin\tcauses\tcafé\n" * 20)  # two passes over the checkpoints
    tracin_pytorch.main(
        arguments(files, "--test-triples", str(triples), "--output-dir", str(tmp_path / "many"), model=paths)
    )
    told = [record.getMessage() for record in caplog.records if "count twice" in record.getMessage()]
    assert told == [f"{paths[2]}: holds the weights of {paths[0]}, which count twice; name each epoch once"]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--num-last-layers", "3"], ["--num-last-layers"]),
        (["--num-last-layers", "3", "--use-last-layers-only"], []),
        (["--damping", "2"], ["--damping"]),
        (["--damping", "2", "--method", "gauss-newton"], []),
        (["--engine", "reference", "--method", "gauss-newton"], ["--engine reference"]),
        (["--engine", "reference", "--batch-size", "7"], ["--batch-size"]),
        (["--batch-size", "7"], []),
        (["--engine", "reference", "--use-mixed-precision"], ["--use-mixed-precision"]),
        (["--use-mixed-precision"], ["--use-mixed-precision"]),
        (
            ["--use-gradient-checkpointing", "--no-cache-test-gradients"],
            ["--use-gradient-checkpointing", "--no-cache-test-gradients"],
        ),
    ],
)
def test_flags_without_effect_say_so(files, more, told, caplog, monkeypatch):
    monkeypatch.setattr(reading, "supports_bfloat16", lambda _: False)
    caplog.set_level("INFO")
    run(files, "--test-triple", "0", "1", "2", "--output", str(files["out.json"]), *more)
    messages = [message for message in caplog.messages if "has no effect" in message]
    assert [message.split(" has no effect")[0] for message in messages] == told


def test_pykeen_checkpoint_points_to_run_tracin(files):
    torch.save({"entity_representations.0._embeddings.weight": torch.zeros(6, 12)}, files["model.pt"])
    with pytest.raises(InputError, match=r"run_tracin\.py"):
        run(files, "--test-triple", "0", "1", "2", "--output", str(files["out.json"]))


@pytest.mark.parametrize("damage", ["cut", "nan", "sizes", "other labels"])
def test_unusable_checkpoints_are_refused(files, damage):
    path = files["model.pt"]
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:2000])
    else:
        content = torch.load(path, weights_only=True)
        if damage == "nan":
            content["model_state_dict"]["conv1.bias"][0] = float("nan")
        elif damage == "sizes":
            content["model_config"]["output_channels"] = 7
        else:
            content["mapping_digest"] = {"entity": "0" * 64}
        torch.save(content, path)
    with pytest.raises(InputError, match=r"model\.pt: "):
        run(files, "--test-triple", "0", "1", "2", "--output", str(files["out.json"]))


def test_errors_are_one_line_with_exit_code_2(files):
    with files["train.txt"].open("a", encoding="utf-8") as file:
        file.write("aspirin\ttreats\n")
    command = [sys.executable, str(ROOT / "tracin_pytorch.py"), *arguments(files), "--test-triple", "0", "1", "2"]
    result = subprocess.run([*command, "--output", str(files["out.json"])], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert f"{files['train.txt']}:{len(TRAINING) + 1}" in result.stderr
    assert not files["out.json"].exists()


def test_usage_errors_are_one_line(files):
    command = [sys.executable, str(ROOT / "tracin_pytorch.py"), *arguments(files), "--test-triple", "0", "1", "2"]
    for more in (["--output", "a", "--top-k", "0"], ["--output", "a", "--batch-size", "-3"], ["--output-dir", "b"]):
        result = subprocess.run([*command, *more], capture_output=True, text=True, check=False)
        assert result.returncode == 2
        assert len(result.stderr.splitlines()) == 1


def test_the_compiler_is_not_imported(files, tmp_path):
    """The training's loss needs torch's decompositions, which are quick to import, and no more."""
    models = [tmp_path / "first.pt", tmp_path / "second.pt"]
    save_model(models[0], make_model(dtype=torch.float32), training_config={"training_approach": "kvsall"})
    save_model(models[1], make_model(dtype=torch.float32), training_config={"loss": "ce"})
    output = ("--test-triple", "0", "1", "2", "--output", str(files["out.json"]))
    program = (
        "import sys, tracin_pytorch; tracin_pytorch.main(sys.argv[1:]);"
        "print([name for name in ('torch._dynamo', 'torch._decomp.decompositions_for_jvp') if name in sys.modules]);"
        "tracin_pytorch.main([*sys.argv[1:], '--training-loss']); print('torch._dynamo' in sys.modules)"
    )
    command = [sys.executable, "-c", program, *arguments(files, *output, model=models)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert "[]" in lines, done.stderr
    assert lines[-1] == "False", done.stderr
    assert json.loads(files["out.json"].read_text())["training_loss"] is True

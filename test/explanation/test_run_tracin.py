"""run_tracin.py through its command line: any checkpoint, three modes, JSON and CSV."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from influence_examples import (
    EVERYTHING,
    TEST_TRIPLES,
    TRAINING,
    gradients_by_hand,
    make_model,
    once_each,
    products_by_hand,
)
from pykeen_examples import gradients_by_hand as pykeen_gradients_by_hand
from pykeen_examples import trained_model, training_factory

import run_tracin
import tracin_pytorch
from conve_tracin.checkpoint.conversion import to_pykeen_checkpoint
from conve_tracin.data.names import Names
from conve_tracin.data.vocabulary import Vocabulary
from conve_tracin.errors import InputError
from conve_tracin.explanation import read as reading
from conve_tracin.influence import tracin as tracin_method
from conve_tracin.influence.method import Influence
from conve_tracin.influence.trace import Trace
from conve_tracin.report.tables import CSV_COLUMNS, trace_as_csv_rows

ROOT = Path(__file__).parents[2]
ENTITIES = ("aspirin", "=2+5", "../../etc/passwd", "CHEBI:4", "head ache, café", "-e5")
RELATIONS = ("treats", "@causes", "predicate:27")
ENGINES = ([], ["--use-optimized-tracin"])


@pytest.fixture
def files(tmp_path):
    """Mappings, triples and a native checkpoint of the influence tests' small model."""
    names = ("train.txt", "test.txt", "entities.tsv", "relations.tsv", "model.pt", "out.json", "out.csv")
    paths = {name: tmp_path / name for name in names}
    write_triples(paths["train.txt"], TRAINING)
    write_triples(paths["test.txt"], TEST_TRIPLES)
    for name, labels in (("entities.tsv", ENTITIES), ("relations.tsv", RELATIONS)):
        paths[name].write_text("".join(f"{label}\t{i}\n" for i, label in enumerate(labels)), encoding="utf-8")
    save_model(paths["model.pt"], make_model(dtype=torch.float32))
    return paths


def write_triples(path, triples):
    lines = [
        "\t".join([ENTITIES[head], RELATIONS[relation], ENTITIES[tail]]) + "\n" for head, relation, tail in triples
    ]
    path.write_text("".join(lines), encoding="utf-8")


def save_model(path, model, **members):
    digests = {
        "entity": Vocabulary("entity", ENTITIES).digest(),
        "relation": Vocabulary("relation", RELATIONS).digest(),
    }
    content = {"epoch": 3, "model_state_dict": model.state_dict(), "model_config": model.config.as_dict()}
    torch.save(content | {"mapping_digest": digests} | members, path)


def arguments(files, *more, model=None, output=None, mappings=True):
    given = ["--model-path", *(model or [files["model.pt"]]), "--train", files["train.txt"]]
    if mappings:
        given += ["--entity-to-id", files["entities.tsv"], "--relation-to-id", files["relations.tsv"]]
    return [str(part) for part in [*given, "-o", output or files["out.json"], *more]]


def run(files, *more, **changes):
    run_tracin.main(arguments(files, *more, **changes))
    return json.loads(Path(changes.get("output") or files["out.json"]).read_text(encoding="utf-8"))


def run_test(files, *more, **changes):
    return run(files, "--test", files["test.txt"], *more, **changes)


def triples_of(result):
    return [[row["train_head"], row["train_relation"], row["train_tail"]] for row in result["influences"]]


def assert_influences(result, expected, *, training=TRAINING, rtol=1e-4):
    """Compare a result with the influences (N,) of the training triples, of which each has one place."""
    training, expected, counts = once_each(training, expected)
    order = np.argsort(-np.abs(expected), kind="stable")[: result["top_k"]]
    np.testing.assert_array_equal(triples_of(result), training[order])
    assert [row.get("count", 1) for row in result["influences"]] == counts[order].tolist()
    actual = [row["influence"] for row in result["influences"]]
    np.testing.assert_allclose(actual, expected[order], rtol=rtol, atol=1e-6 * np.abs(expected).max())


# ---------------------------------------------------------------------------------------------------------------
# Modes


@pytest.mark.parametrize("engine", ENGINES)
def test_mode_test_traces_every_test_triple(files, engine):
    content = run_test(files, *engine, "--learning-rate", "0.5", "--batch-size", "3")
    assert (content["mode"], content["top_k"], content["learning_rate"]) == ("test", 10, 0.5)
    assert [result["test_index"] for result in content["results"]] == [0, 1, 2]
    expected = 0.5 * products_by_hand(make_model(), EVERYTHING)
    for triple, row, result in zip(TEST_TRIPLES.tolist(), expected, content["results"], strict=True):
        assert [result["test_triple"][part] for part in ("head", "relation", "tail")] == triple
        assert_influences(result, row)


def test_single_triple_has_the_json_of_tracin_pytorch(files, tmp_path):
    single = run_test(files, "--mode", "single", "--test-indices", "1", "--top-k", "5")
    other = tmp_path / "other.json"
    given = [part for part in arguments(files, output=other) if part != "-o"]
    given.insert(given.index(str(other)), "--output")
    tracin_pytorch.main([*given, "--test-triple", "3", "1", "3", "--top-k", "5", "--engine", "reference"])
    assert single.pop("test_index") == 1
    theirs = json.loads(other.read_text(encoding="utf-8"))
    assert {name: single[name] for name in theirs} == theirs


def test_single_triples_come_in_the_order_of_their_indices(files):
    content = run_test(files, "--mode", "single", "--test-indices", "2", "0", "2")
    assert content["mode"] == "single"
    assert [result["test_index"] for result in content["results"]] == [2, 0]
    expected = 0.001 * products_by_hand(make_model(), EVERYTHING)
    for index, result in zip((2, 0), content["results"], strict=True):
        assert_influences(result, expected[index])


def test_an_index_means_the_same_line_whatever_is_skipped(files):
    test = files["test.txt"].read_text(encoding="utf-8")
    files["test.txt"].write_text("nobody\ttreats\taspirin\n" + test, encoding="utf-8")
    result = run_test(files, "--mode", "single", "--test-indices", "1", "--skip-unknown")
    assert_influences(result, 0.001 * products_by_hand(make_model(), EVERYTHING)[0])
    with pytest.raises(InputError, match=r"test\.txt:1: unknown entity 'nobody'"):
        run_test(files, "--mode", "single", "--test-indices", "0", "--skip-unknown")
    content = run_test(files, "--skip-unknown", "--max-test-triples", "2")
    assert [result["test_index"] for result in content["results"]] == [1, 2]


def test_max_test_triples_takes_the_first(files):
    content = run_test(files, "--max-test-triples", "2")
    assert [result["test_index"] for result in content["results"]] == [0, 1]
    assert len(run_test(files, "--max-test-triples", "50")["results"]) == 3


def test_listed_triples_of_ids_or_labels(files, tmp_path):
    (tmp_path / "listed.txt").write_text("4 2 0\nCHEBI:4\t@causes\tCHEBI:4\n")
    content = run(files, "--test-triples", tmp_path / "listed.txt")
    expected = 0.001 * products_by_hand(make_model(), EVERYTHING)
    for index, result in zip((2, 1), content["results"], strict=True):
        assert_influences(result, expected[index])


@pytest.mark.parametrize("engine", ENGINES)
def test_mode_self_ranks_by_self_influence(files, engine, capsys):
    content = run(files, "--mode", "self", "--top-k", "4", "--learning-rate", "0.1", "--csv-output", *engine)
    norms = 0.1 * gradients_by_hand(make_model(), TRAINING, EVERYTHING).square().sum(dim=1).numpy()
    order = np.argsort(-norms, kind="stable")[:4]
    rows = content["self_influences"]
    assert [[row["train_head"], row["train_relation"], row["train_tail"]] for row in rows] == TRAINING[order].tolist()
    np.testing.assert_allclose([row["self_influence"] for row in rows], norms[order], rtol=1e-4)
    first = TRAINING[order[0]]
    assert f"{ENTITIES[first[0]]} — {RELATIONS[first[1]]} → {ENTITIES[first[2]]}" in capsys.readouterr().out
    table = pd.read_csv(files["out.csv"])
    np.testing.assert_allclose(table["SelfInfluence"], norms[order], rtol=1e-4)
    assert (table["TracInScore"] == table["SelfInfluence"]).all()
    assert (table["TestHead"] == table["TrainHead"]).all()


# ---------------------------------------------------------------------------------------------------------------
# Outputs


def test_csv_columns_scores_and_self_influences(files):
    content = run_test(files, "--csv-output", files["out.csv"], "--top-k", "3")
    table = pd.read_csv(files["out.csv"])
    assert tuple(table.columns) == CSV_COLUMNS
    documented = "TestHead,TestHead_label,TestRel,TestRel_label,TestTail,TestTail_label,TrainHead,TrainHead_label,"
    documented += "TrainRel,TrainRel_label,TrainTail,TrainTail_label,TracInScore,SelfInfluence"
    assert files["out.csv"].read_text(encoding="utf-8").splitlines()[0] == documented
    influences = [row["influence"] for result in content["results"] for row in result["influences"]]
    assert table["TracInScore"].tolist() == influences
    norms = 0.001 * gradients_by_hand(make_model(), TRAINING, EVERYTHING).square().sum(dim=1).numpy()
    own = dict(zip(map(tuple, TRAINING.tolist()), norms.tolist(), strict=True))
    expected = [own[tuple(triple)] for result in content["results"] for triple in triples_of(result)]
    np.testing.assert_allclose(table["SelfInfluence"], expected, rtol=1e-4)


def test_names_in_json_and_csv_and_no_formulas(files, tmp_path):
    (tmp_path / "names.txt").write_text('+Aspirin, "the drug"\t0\nEntity five\t5\n', encoding="utf-8")
    (tmp_path / "edges.json").write_text('{"{\\"predicate\\": \\"biolink:causes\\"}": "@causes"}')
    content = run_test(
        files, "--node-name-dict", tmp_path / "names.txt", "--edge-map", tmp_path / "edges.json",
        "--csv-output", files["out.csv"], "--top-k", str(len(TRAINING)),
    )  # fmt: skip
    first = content["results"][0]
    assert first["test_triple"]["head_label"] == '+Aspirin, "the drug"'
    assert first["test_triple"]["relation_label"] == "biolink:causes"
    assert {row["train_head_label"] for row in first["influences"] if row["train_head"] == 5} == {"Entity five"}
    table = pd.read_csv(files["out.csv"])
    row = table.iloc[0]
    assert (row["TestHead"], row["TestHead_label"]) == ("aspirin", '\'+Aspirin, "the drug"')
    assert (row["TestRel"], row["TestRel_label"]) == ("'@causes", "biolink:causes")
    assert "'-e5" in set(table["TrainHead"])
    texts = table.select_dtypes(exclude="number")
    assert not texts.map(lambda cell: cell.startswith(("=", "+", "-", "@"))).any(axis=None)
    assert (table["TracInScore"] < 0).any()


def test_the_documented_pattern_gives_labels_back_for_joins():
    labels = ("=2+5", "'=2+5", "''-1", "-e5", "+a", "@b", "\tc", "'s-Hertogenbosch", "5'-AMP", "a=b", "'", "MONDO:1")
    names = Names(entities=Vocabulary("entity", labels), relations=Vocabulary("relation", ("r",)))
    influences = [Influence(entity, 0, entity, 0.5, entity) for entity in range(len(labels))]
    rows = trace_as_csv_rows(Trace((0, 0, 0), influences, [], []), names, dict.fromkeys(range(len(labels)), 1.0))
    heads = pd.DataFrame(rows, columns=CSV_COLUMNS)["TrainHead"]
    assert not heads.str.match(r"[=+\-@\t\r]").any()
    (pattern,) = re.findall(r'column\.str\.replace\(r"(.+)", "", regex=True\)', (ROOT / "docs/tracin.md").read_text())
    assert tuple(heads.str.replace(pattern, "", regex=True)) == labels


@pytest.mark.parametrize("output", ["results", "results.json"])
def test_one_file_for_each_test_triple_with_safe_names(files, tmp_path, output):
    run_tracin.main(arguments(files, "--test", str(files["test.txt"]), output=tmp_path / "one.json"))
    together = json.loads((tmp_path / "one.json").read_text(encoding="utf-8"))["results"]
    more = ["--test", str(files["test.txt"]), "--output-per-triple", "--csv-output"]
    run_tracin.main(arguments(files, *more, output=tmp_path / output))
    written = sorted(path.name for path in (tmp_path / "results").iterdir())
    assert written == [
        "test_0_aspirin_causes_etc_passwd.json",
        "test_1_CHEBI_4_causes_CHEBI_4.json",
        "test_2_head_ache_caf_predicate_27_aspirin.json",
        "tracin.csv",
    ]
    for name, result in zip(written, together, strict=False):
        assert json.loads((tmp_path / "results" / name).read_text(encoding="utf-8")) == result


@pytest.mark.parametrize("mode", ["test", "self"])
def test_names_that_the_terminal_cannot_show_stop_nothing(files, tmp_path, mode):
    (tmp_path / "names.txt").write_text("α-tocopherol\t0\n日本\t5\n", encoding="utf-8")
    given = arguments(files, "--test", files["test.txt"], "--mode", mode, "--node-name-dict", tmp_path / "names.txt")
    result = run_script("run_tracin.py", *given, encoding="ascii")
    assert result.returncode == 0, result.stderr
    assert r"\u03b1-tocopherol" in result.stdout
    assert "α-tocopherol" in files["out.json"].read_text(encoding="utf-8")


@pytest.mark.parametrize("mode", ["test", "self"])
def test_results_are_written_before_anything_is_printed(files, tmp_path, mode, monkeypatch):
    report = tmp_path / "report.html"
    monkeypatch.setattr("builtins.print", lambda *_, **__: (_ for _ in ()).throw(BrokenPipeError))
    with pytest.raises(BrokenPipeError):
        run_tracin.main(
            arguments(files, "--test", files["test.txt"], "--mode", mode, "--csv-output", "--report", report)
        )
    assert files["out.json"].exists()
    assert files["out.csv"].exists()
    assert report.exists() == (mode == "test")


# ---------------------------------------------------------------------------------------------------------------
# Engines and settings


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["--use-last-layers-only"],
        ["--use-last-layers-only", "--num-last-layers", "5"],
        ["--last-layer-names", "bn2.weight", "entity_embeddings.weight"],
    ],
)
def test_the_optimized_engine_changes_no_result(files, more):
    plain = run_test(files, *more, "--csv-output", "--top-k", "12")
    table = pd.read_csv(files["out.csv"])
    fast = run_test(files, *more, "--csv-output", "--top-k", "12", "--use-optimized-tracin")
    for one, other in zip(plain["results"], fast["results"], strict=True):
        assert triples_of(one) == triples_of(other)
    pd.testing.assert_frame_equal(table, pd.read_csv(files["out.csv"]), rtol=1e-4, atol=1e-8)


def test_pykeens_training_is_not_guessed(files):
    torch.save(to_pykeen_checkpoint(torch.load(files["model.pt"], weights_only=True)), files["model.pt"])
    with pytest.raises(InputError, match=r"--training-loss is for checkpoints of train_pytorch\.py"):
        run_test(files, "--training-loss")


def test_last_layers_are_the_ones_that_were_asked_for(files):
    content = run_test(files, "--last-layer-names", "bn2.weight", "conv1.bias")
    expected = 0.001 * products_by_hand(make_model(), ["bn2.weight", "conv1.bias"])
    for row, result in zip(expected, content["results"], strict=True):
        assert_influences(result, row)


@pytest.mark.parametrize("converted", [False, True])
def test_mixed_precision_rounds_nothing_that_is_listed(files, monkeypatch, converted):
    monkeypatch.setattr(reading, "supports_bfloat16", lambda _: True)
    monkeypatch.setattr(tracin_method, "RESCORED", 1)
    if converted:
        torch.save(to_pykeen_checkpoint(torch.load(files["model.pt"], weights_only=True)), files["model.pt"])
    content = run_test(files, "--use-optimized-tracin", "--use-mixed-precision", "--top-k", "6")
    for row, result in zip(0.001 * products_by_hand(make_model(), EVERYTHING), content["results"], strict=True):
        assert_influences(result, row)


WITHOUT_EFFECT = {
    "--use-mixed-precision": [],
    "--batch-size": ["7"],
    "--use-gradient-checkpointing": [],
    "--disable-vectorized-gradients": [],
    "--disable-test-gradient-caching": [],
    "--use-torch-compile": [],
    "--enable-multi-gpu": [],
    "--disable-memory-cleanup": [],
    "--num-last-layers": ["3"],
    "--damping": ["2"],
    "--test-indices": ["1"],
}


def test_flags_without_effect_say_so_once_and_change_nothing(files, caplog):
    plain = run_test(files)
    caplog.set_level("INFO")
    flags = [part for flag, values in WITHOUT_EFFECT.items() for part in (flag, *values)]
    assert run_test(files, *flags) == plain
    for flag in WITHOUT_EFFECT:
        assert sum(message.startswith(f"{flag} has no effect") for message in caplog.messages) == 1
    caplog.clear()
    fast = ["--use-vectorized-gradients", "--cache-test-gradients", "--batch-size", "7", "--use-optimized-tracin"]
    fast += ["--known", files["test.txt"]]
    run(files, "--mode", "self", "--test", files["test.txt"], "--max-test-triples", "1", "--output-per-triple", *fast)
    told = {message.split(" has no effect")[0] for message in caplog.messages if "has no effect" in message}
    assert told == {
        "--use-vectorized-gradients", "--cache-test-gradients", "--test", "--max-test-triples", "--output-per-triple",
        "--known",
    }  # fmt: skip


@pytest.mark.parametrize("converted", [False, True])
def test_a_size_that_the_checkpoint_holds_itself_has_no_effect(files, caplog, converted):
    if converted:
        torch.save(to_pykeen_checkpoint(torch.load(files["model.pt"], weights_only=True)), files["model.pt"])
    plain = run_test(files)
    caplog.set_level("INFO")
    assert run_test(files, "--embedding-height", "20", "--embedding-width", "10") == plain
    expected = f"--embedding-height and --embedding-width have no effect on {files['model.pt']}"
    assert sum(message.startswith(expected) for message in caplog.messages) == 1


def test_triples_that_were_asked_for_by_name_are_not_skipped(files, tmp_path, caplog):
    caplog.set_level("INFO")
    (tmp_path / "listed.txt").write_text("nobody\t@causes\tCHEBI:4\n")
    with pytest.raises(InputError, match=r"listed\.txt:1: head: unknown entity 'nobody'"):
        run(files, "--test-triples", tmp_path / "listed.txt", "--skip-unknown")
    (tmp_path / "listed.txt").write_text("CHEBI:4\t@causes\tCHEBI:4\n")
    run(files, "--test-triples", tmp_path / "listed.txt", "--skip-unknown")
    assert any(message.startswith("--skip-unknown has no effect on --test-triples") for message in caplog.messages)


def test_documented_defaults():
    args = run_tracin.parse_args(
        ["--model-path", "m", "--train", "t", "--test", "t", "--entity-to-id", "e", "--relation-to-id", "r", "-o", "o"]
    )
    assert (args.mode, args.top_k, args.batch_size, args.device, args.num_last_layers) == ("test", 10, 256, "auto", 2)
    switches = (
        "output_per_triple", "use_optimized_tracin", "use_mixed_precision", "use_gradient_checkpointing",
        "use_last_layers_only", "use_torch_compile", "enable_multi_gpu", "disable_memory_cleanup", "trust_pickle",
    )  # fmt: skip
    assert not any(getattr(args, switch) for switch in switches)


# ---------------------------------------------------------------------------------------------------------------
# Formats


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("inverse_triples", [False, True])
def test_a_checkpoint_and_its_conversion_give_the_same(files, tmp_path, inverse_triples, engine):
    model = make_model(dtype=torch.float32)
    if inverse_triples:
        torch.manual_seed(3)
        doubled = type(model)(**model.config.as_dict() | {"num_relations": 2 * len(RELATIONS)})
        rows = torch.randn(2 * len(RELATIONS), model.config.embedding_dim)
        rows[::2] = model.relation_embeddings.weight.detach()
        doubled.load_state_dict(model.state_dict() | {"relation_embeddings.weight": rows})
        model = doubled
    save_model(files["model.pt"], model, training_config={"inverse_triples": inverse_triples})
    native_checkpoint = torch.load(files["model.pt"], weights_only=True)
    torch.save(to_pykeen_checkpoint(native_checkpoint), tmp_path / "converted.pt")
    native = run_test(files, "--top-k", "12", *engine)
    converted = run_test(files, "--top-k", "12", *engine, model=[tmp_path / "converted.pt"])
    expected = 0.001 * products_by_hand(make_model(), EVERYTHING)
    for one, other, row in zip(native["results"], converted["results"], expected, strict=True):
        assert_influences(one, row)
        assert triples_of(one) == triples_of(other)
        ours, theirs = ([row["influence"] for row in result["influences"]] for result in (one, other))
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6 * abs(ours[0]))


@pytest.fixture
def pipeline(tmp_path):
    """What PyKEEN's pipeline saves: the directory of a RotatE with inverse triples, and two files of triples."""
    factory = training_factory(inverse_triples=True)
    folder = tmp_path / "pipeline"
    factory.to_path_binary(folder / "training_triples")
    torch.save(trained_model("RotatE", inverse_triples=True, dtype=torch.float32), folder / "trained_model.pkl")
    paths = {"train.txt": tmp_path / "train.txt", "test.txt": tmp_path / "test.txt", "out.json": tmp_path / "out.json"}
    # The factory's own triples include inverses; those of a file never do.
    triples = training_factory().mapped_triples[:40]
    for name, part in (("train.txt", triples), ("test.txt", triples[5:7])):
        np.savetxt(paths[name], training_factory().label_triples(part), fmt="%s", delimiter="\t")
    return paths | {"folder": folder, "triples": triples.numpy()}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("path", ["pipeline", "pipeline/trained_model.pkl"])
def test_a_pykeen_pipeline_brings_its_mappings(pipeline, tmp_path, path, engine):
    content = run_test(
        pipeline, "--trust-pickle", "--top-k", "40", *engine, model=[tmp_path / path], mappings=False,
    )  # fmt: skip
    model = trained_model("RotatE", inverse_triples=True)
    training = pykeen_gradients_by_hand(model, pipeline["triples"])
    for row, result in zip(0.001 * training[5:7] @ training.T, content["results"], strict=True):
        actual = {
            tuple(triple): r["influence"] for triple, r in zip(triples_of(result), result["influences"], strict=True)
        }
        values = np.array([actual[tuple(triple)] for triple in pipeline["triples"].tolist()])
        np.testing.assert_allclose(values, row.numpy(), rtol=1e-3, atol=1e-4 * row.abs().max().item())


def test_a_pykeen_state_dict_is_read_as_conve(pipeline, tmp_path):
    torch.save(trained_model("ConvE", dtype=torch.float32).state_dict(), tmp_path / "state_dict.pt")
    mappings = pipeline["folder"] / "training_triples"
    more = ["--entity-to-id", mappings / "entity_to_id.tsv.gz", "--relation-to-id", mappings / "relation_to_id.tsv.gz"]
    content = run_test(
        pipeline, *more, "--embedding-height", "3", model=[tmp_path / "state_dict.pt"], mappings=False,
        )  # fmt: skip
    training = pykeen_gradients_by_hand(trained_model("ConvE"), pipeline["triples"])
    for row, result in zip(0.001 * training[5:7] @ training.T, content["results"], strict=True):
        assert abs(result["influences"][0]["influence"]) == pytest.approx(row.abs().max().item(), rel=1e-3)


def test_several_checkpoints_of_different_formats_add_up(files, tmp_path):
    other = make_model(dtype=torch.float32)
    with torch.no_grad():
        other.fc.weight.mul_(0.5)
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    save_model(folder / "checkpoint_epoch_10.pt", make_model(dtype=torch.float32), learning_rate=0.1)
    save_model(tmp_path / "native.pt", other, learning_rate=0.2)
    native_checkpoint = torch.load(tmp_path / "native.pt", weights_only=True)
    torch.save(to_pykeen_checkpoint(native_checkpoint), folder / "checkpoint_epoch_9_pykeen.pt")
    content = run_test(files, "--csv-output", model=[folder])
    assert [Path(path).name for path in content["checkpoints"]] == [
        "checkpoint_epoch_9_pykeen.pt",
        "checkpoint_epoch_10.pt",
    ]
    assert content["learning_rate"] == [0.2, 0.1]
    expected = 0.1 * products_by_hand(make_model(), EVERYTHING) + 0.2 * products_by_hand(other, EVERYTHING)
    for row, result in zip(expected, content["results"], strict=True):
        assert_influences(result, row)
    one, two = (
        gradients_by_hand(model, TEST_TRIPLES[:1], EVERYTHING).square().sum() for model in (make_model(), other)
    )
    own = pd.read_csv(files["out.csv"]).query("TrainHead == 'aspirin' and TrainTail == '../../etc/passwd'")
    assert own["SelfInfluence"].iloc[0] == pytest.approx((0.1 * one + 0.2 * two).item(), rel=1e-4)


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_a_pickle_that_would_run_code_is_refused(files, tmp_path):
    marker = tmp_path / "ran"
    torch.save({"model_state_dict": Payload(marker)}, files["model.pt"])
    result = run_script("run_tracin.py", *arguments(files, "--test", files["test.txt"]))
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "--trust-pickle" in result.stderr
    assert not marker.exists()
    assert not files["out.json"].exists()


# ---------------------------------------------------------------------------------------------------------------
# Errors


def run_script(script, *given, encoding="utf-8"):
    command = [sys.executable, str(ROOT / script), *map(str, given)]
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    return subprocess.run(command, capture_output=True, encoding=encoding, env=environment, check=False)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--test", "{test}", "--mode", "single", "--test-indices", "3"], r"--test-indices 3: .*0 to 2"),
        (["--test", "{test}", "--last-layer-names", "fc.wieght"], r"fc\.wieght"),
        (["--test", "{test}", "--device", "cuda:7"], "cuda:7"),
        (["--test", "{test}", "--csv-output", "{output}"], "same file"),
        (["--test", "{test}", "--csv-output", "{folder}"], "is a directory"),
        (["--test", "{test}", "--output", "{folder}"], "add --output-per-triple"),
        (["--test", "{test}", "--output", "{test}", "--output-per-triple"], "needs a directory"),
        (["--test", "{test}", "--output", "{test}"], r"test\.txt: is an input, which --output would replace"),
        (["--test", "{test}", "--csv-output", "{test}"], r"test\.txt: is an input"),
        (["--test", "{test}", "--output", "{test}/out.json"], r"cannot be written, as .*test\.txt is a file"),
        (["--test", "{test}", "--model-path", "{folder}/none.pt"], r"none\.pt: no such file"),
        (["--test", "{test}", "--model-path", "{folder}"], r"holds no checkpoint_epoch_\*\.pt"),
    ],
)
def test_bad_values_are_named_before_the_work(files, tmp_path, more, message):
    (tmp_path / "folder").mkdir()
    places = {"test": files["test.txt"], "output": files["out.json"], "folder": tmp_path / "folder"}
    with pytest.raises(InputError, match=message):
        run_tracin.main(arguments(files, *(part.format_map(places) for part in more)))
    assert not files["out.json"].exists()


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["--test", "x", "--mode", "single"],
        ["--test", "x", "--test-triples", "x"],
        ["--test-triples", "x", "--mode", "single", "--test-indices", "1"],
        ["--test", "x", "--mode", "single", "--test-indices", "-1"],
        ["--test", "x", "--mode", "all"],
        ["--test", "x", "--top-k", "0"],
        ["--test", "x", "--use-vectorized-gradients", "--disable-vectorized-gradients"],
    ],
)
def test_usage_errors_are_one_line(files, more, capsys):
    with pytest.raises(SystemExit) as stopped:
        run_tracin.main(arguments(files, *more))
    assert stopped.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_mappings_are_needed_without_a_pipeline(files):
    with pytest.raises(InputError, match="give --entity-to-id and --relation-to-id"):
        run_test(files, mappings=False)
    with pytest.raises(InputError, match="give both"):
        run_test(files, "--entity-to-id", files["entities.tsv"], mappings=False)


def test_a_model_of_other_mappings_is_refused(files, tmp_path):
    content = to_pykeen_checkpoint(torch.load(files["model.pt"], weights_only=True))
    torch.save(content | {"mapping_digest": {"entity": "0" * 64}}, tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"other\.pt: was trained with another entity mapping"):
        run_test(files, model=[tmp_path / "other.pt"])
    with files["entities.tsv"].open("a", encoding="utf-8") as file:
        file.write(f"one more\t{len(ENTITIES)}\n")
    for path in (tmp_path / "other.pt", files["model.pt"]):
        with pytest.raises(InputError, match=r"entities\.tsv: has 7 labels, but .* 6 entity embeddings"):
            run_test(files, model=[path])


def test_inverse_triples_that_a_checkpoint_does_not_tell_of_are_suspected(files):
    model = make_model(dtype=torch.float32)
    content = torch.load(files["model.pt"], weights_only=True)
    content["model_state_dict"]["relation_embeddings.weight"] = model.relation_embeddings.weight.detach().repeat(2, 1)
    content["model_config"]["num_relations"] *= 2
    torch.save(content, files["model.pt"])
    with pytest.raises(InputError, match=r"3 labels, but .*model\.pt has 6 relation embeddings; .* inverse triples"):
        run_test(files)


def test_a_file_of_something_else_is_refused(files):
    torch.save({"epoch": 1}, files["model.pt"])
    with pytest.raises(InputError, match=r"model\.pt: holds neither"):
        run_test(files)


@pytest.mark.parametrize(("script", "engine"), [("tracin.py", []), ("tracin_optimized.py", ["--use-optimized-tracin"])])
def test_analyzers_as_scripts_are_run_tracin(files, script, engine):
    content = run_test(files, *engine)
    given = arguments(files, "--test", files["test.txt"])
    files["out.json"].unlink()
    result = run_script(script, *given)
    assert result.returncode == 0, result.stderr
    assert json.loads(files["out.json"].read_text(encoding="utf-8")) == content


@pytest.mark.parametrize("script", ["run_tracin.py", "tracin.py", "tracin_optimized.py"])
def test_scripts_show_their_help_without_torch(script):
    # A module that cannot be imported stands in for both libraries.
    code = (
        "import sys, runpy; sys.modules.update(torch=None, pykeen=None, numpy=None); sys.argv = [sys.argv[1], '--help']"
    )
    command = [sys.executable, "-c", f"{code}; runpy.run_path(sys.argv[0], run_name='__main__')", str(ROOT / script)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"usage: {script} ")
    assert "--use-optimized-tracin" in result.stdout


def test_documented_names_are_importable():
    import tracin
    import tracin_optimized

    assert run_tracin.run_tracin_analysis.__name__ == "run_tracin_analysis"
    assert hasattr(tracin.TracInAnalyzer, "compute_batch_individual_gradients")
    assert hasattr(tracin_optimized.TracInAnalyzer, "compute_batch_gradients_vectorized")
    with pytest.raises(AttributeError):
        _ = tracin.Nothing


def test_python_call_takes_the_same_options(files):
    content = run_tracin.run_tracin_analysis(
        model_path=str(files["model.pt"]), train=str(files["train.txt"]), test=str(files["test.txt"]),
        entity_to_id=str(files["entities.tsv"]), relation_to_id=str(files["relations.tsv"]),
        output=str(files["out.json"]), mode="single", test_indices=[0],
    )  # fmt: skip
    assert content == json.loads(files["out.json"].read_text(encoding="utf-8"))
    assert_influences(content, 0.001 * products_by_hand(make_model(), EVERYTHING)[0])

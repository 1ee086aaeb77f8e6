"""train_pytorch.py through its command line, and `--help` of every script without the heavy packages."""

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training_runs import QUICK, files_below, run_main

import convert_checkpoint
import run_tracin
import tracin_pytorch
import train_pytorch
from conve_tracin import cli
from conve_tracin.checkpoint.native import load_checkpoint
from conve_tracin.compute import memory
from conve_tracin.compute.device import supports_bfloat16
from conve_tracin.settings import TrainingConfig
from conve_tracin.training import run as training_run

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path.name for path in ROOT.glob("*.py"))

# The table of the contract: what the founding documents promise.
DOCUMENTED_DEFAULTS = {
    "embedding_dim": 200, "embedding_height": 10, "embedding_width": 20, "output_channels": 32,
    "kernel_height": 3, "kernel_width": 3,
    "input_dropout": 0.2, "feature_map_dropout": 0.2, "output_dropout": 0.3,
    "random_seed": 42, "num_epochs": 100, "batch_size": 256, "learning_rate": 0.001, "label_smoothing": 0.1,
    "checkpoint_dir": None, "checkpoint_frequency": 2, "resume_from_checkpoint": None,
    "use_mixed_precision": False, "use_gradient_checkpointing": False, "disable_memory_cleanup": False,
    "no_gpu": False, "num_workers": 4,
    "training_approach": "1vsall", "inverse_triples": False, "skip_unknown": False,
    "loss": "bce", "optimizer": "adam", "entity_bias": False, "lr_decay": 1.0, "weight_decay": 0.0,
    "early_stopping_patience": 0, "use_torch_compile": False, "auto_batch_size": False, "eval_frequency": 1,
}  # fmt: skip
REQUIRED = ("--train", "--valid", "--test", "--entity-to-id", "--relation-to-id", "--output-dir")


# ---------------------------------------------------------------------------------------------------------------
# Flags


def test_defaults_are_the_documented_ones():
    arguments = [part for flag in REQUIRED for part in (flag, "x")]
    parsed = vars(train_pytorch.build_parser().parse_args(arguments))
    assert DOCUMENTED_DEFAULTS.items() <= parsed.items()


@pytest.mark.parametrize("flag", REQUIRED)
def test_required_flags_are_required(flag, capsys):
    arguments = [part for other in REQUIRED if other != flag for part in (other, "x")]
    with pytest.raises(SystemExit) as stop:
        train_pytorch.build_parser().parse_args(arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert flag in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "wrong",
    [
        ("--batch-size", "0"), ("--batch-size", "-3"), ("--num-epochs", "0"), ("--num-epochs", "many"),
        ("--learning-rate", "nan"), ("--learning-rate", "inf"), ("--learning-rate", "-1"), ("--learning-rate", "0"),
        ("--label-smoothing", "1"), ("--label-smoothing", "-0.1"), ("--input-dropout", "1.5"),
        ("--checkpoint-frequency", "0"), ("--num-workers", "-1"), ("--embedding-dim", "2.5"),
        ("--training-approach", "all"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_impossible_values_are_one_line(wrong, capsys):
    arguments = [part for flag in REQUIRED for part in (flag, "x")]
    with pytest.raises(SystemExit) as stop:
        train_pytorch.build_parser().parse_args([*arguments, *wrong])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert wrong[0] in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("--lr-patience", "5"), "--lr-patience has no effect without --lr-scheduler plateau"),
        (("--lr-patience", "5", "--lr-scheduler", "none"), "--lr-patience has no effect without"),
        (("--lr-decay", "0.9", "--lr-scheduler", "none"), "--lr-decay has no effect with --lr-scheduler none"),
        (("--lr-decay", "0.9"), ""),
        (("--query-weights", "tails"), "--query-weights has no effect with --training-approach 1vsall"),
        (("--query-weights", "tails", "--training-approach", "kvsall"), ""),
        (("--lr-patience", "5", "--lr-decay", "0.9", "--lr-scheduler", "plateau"), ""),
    ],
)
def test_settings_that_change_nothing_are_named(settings, message):
    args = train_pytorch.build_parser().parse_args([part for flag in REQUIRED for part in (flag, "x")] + list(settings))
    config = TrainingConfig(**cli.members_of(TrainingConfig, args))
    messages = list(train_pytorch.settings_without_effect(args, config, device="cpu"))
    assert len(messages) == bool(message)
    assert message in "".join(messages)


def test_names_of_the_documents_are_importable_from_the_script():
    from conve_tracin.model.conve import ConvE
    from conve_tracin.model.loss import compute_loss_efficient

    assert train_pytorch.ConvE is ConvE
    assert train_pytorch.compute_loss_efficient is compute_loss_efficient
    with pytest.raises(AttributeError):
        train_pytorch.no_such_name  # noqa: B018


BLOCKER = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "pykeen", "pandas"):
            raise ImportError(f"{name} is not to be imported for --help")

sys.meta_path.insert(0, Refuse())
"""


def test_help_of_every_script_needs_neither_torch_nor_pykeen_nor_pandas(tmp_path):
    assert {"train_pytorch.py", "tracin_pytorch.py", "convert_checkpoint.py", "prepare_data.py"} <= set(SCRIPTS)
    (tmp_path / "sitecustomize.py").write_text(BLOCKER)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}

    def start(*command):
        return subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    running = {script: start(script, "--help") for script in SCRIPTS}
    refused = start("-c", "import torch")
    for script, process in running.items():
        out, error = process.communicate(timeout=30)
        assert process.returncode == 0, f"{script}: {error}"
        assert error == ""
        assert out.startswith("usage: ")
    assert "not to be imported" in refused.communicate(timeout=30)[1]


# ---------------------------------------------------------------------------------------------------------------
# Runs


def test_a_run_as_documented_writes_its_files_and_nothing_but_progress_on_stderr(graph_files, tmp_path):
    command = [
        sys.executable, "train_pytorch.py", *graph_files.arguments(), "-o", tmp_path / "out", *QUICK,
        "--checkpoint-dir", tmp_path / "elsewhere", "--checkpoint-frequency", "1",
        "--input-dropout", "0.1", "--feature-map-dropout", "0.1", "--output-dropout", "0.1", "--random-seed", "7",
        "--learning-rate", "0.01", "--label-smoothing", "0.2", "--num-workers", "2", "--disable-memory-cleanup",
        "--use-mixed-precision", "--use-gradient-checkpointing", "--training-approach", "kvsall", "--inverse-triples",
        "--lr-decay", "0.9", "--early-stopping-patience", "3", "--eval-frequency", "5",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out/test_results.json").read_text())
    assert f"mean_reciprocal_rank  {results['mean_reciprocal_rank']:.4f}" in done.stdout
    assert "heads and tails" in done.stdout
    assert "--num-workers has no effect" in done.stderr
    assert "--disable-memory-cleanup has no effect on the CPU" in done.stderr
    assert ("--use-mixed-precision has no effect: this processor" in done.stderr) is not supports_bfloat16("cpu")
    assert "Warning" not in done.stderr
    assert "epoch 2/2: 100%" in done.stderr
    assert files_below(tmp_path / "out") == {
        "best_model.pt", "final_model.pt", "config.json", "training_history.json", "training_curves.svg",
        "test_results.json",
    }  # fmt: skip
    assert files_below(tmp_path / "elsewhere") == {"checkpoint_epoch_1.pt", "checkpoint_epoch_2.pt"}
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["training_config"]["label_smoothing"] == 0.2
    assert config["training_config"]["random_seed"] == 7
    assert config["model_config"]["output_dropout"] == 0.1


def test_resuming_automatically_starts_anew_then_goes_on_from_the_newest_whole_checkpoint(
    graph_files, tmp_path, monkeypatch, caplog
):
    arguments = [
        *graph_files.arguments(), "-o", tmp_path / "out", *QUICK, "--checkpoint-frequency", "1",
        "--resume-from-checkpoint", "auto",
    ]  # fmt: skip
    caplog.set_level("INFO")
    assert run_main(monkeypatch, *arguments) == 0
    assert "training starts anew" in caplog.text
    checkpoints = tmp_path / "out/checkpoints"
    (checkpoints / "checkpoint_epoch_2.pt").write_bytes(b"PK half a checkpoint")
    caplog.clear()
    assert run_main(monkeypatch, *arguments, "--num-epochs", "3") == 0
    assert "checkpoint_epoch_2.pt" in caplog.text
    assert "going on after epoch 1" in caplog.text
    assert load_checkpoint(tmp_path / "out/final_model.pt")["epoch"] == 3


def test_the_mappings_digest_is_stored_and_another_order_of_labels_is_refused(
    graph, graph_files, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "out"
    assert run_main(monkeypatch, *graph_files.arguments(), "-o", out, *QUICK) == 0
    checkpoint = out / "checkpoints/checkpoint_epoch_2.pt"
    stored = load_checkpoint(checkpoint)["mapping_digest"]
    assert {len(stored["entity"]), len(stored["relation"])} == {64}
    lines = graph_files.entity_to_id.read_text(encoding="utf-8").splitlines()
    swapped = [f"{line.split(chr(9))[0]}\t{(position + 1) % 6}" for position, line in enumerate(lines)]
    graph_files.entity_to_id.write_text("\n".join(swapped) + "\n", encoding="utf-8")
    capsys.readouterr()
    again = [*graph_files.arguments(), "-o", tmp_path / "again", *QUICK, "--resume-from-checkpoint", checkpoint]
    assert run_main(monkeypatch, *again) == 2
    assert "trained with another entity mapping" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


def test_other_training_triples_are_pointed_out_by_resumption_and_by_tracing(
    graph_files, tmp_path, monkeypatch, caplog
):
    out = tmp_path / "out"
    assert run_main(monkeypatch, *graph_files.arguments(), "-o", out, *QUICK) == 0
    lines = graph_files.train.read_text(encoding="utf-8").splitlines(keepends=True)
    convert_checkpoint.main(["--input", str(out / "best_model.pt"), "--output", str(out / "converted.pt")])
    mappings = ["--entity-to-id", graph_files.entity_to_id, "--relation-to-id", graph_files.relation_to_id]
    tracers = {"best_model.pt": tracin_pytorch.main, "converted.pt": run_tracin.main}
    for kept, told in ((lines[::-1], False), (lines[:-1], True)):
        graph_files.train.write_text("".join(kept), encoding="utf-8")
        caplog.clear()
        resumed = [
            "-o",
            tmp_path / "more",
            *QUICK,
            "--resume-from-checkpoint",
            out / "checkpoints/checkpoint_epoch_2.pt",
        ]
        assert run_main(monkeypatch, *graph_files.arguments(), *resumed) == 0
        assert ("was trained on other triples than those of --train; going on" in caplog.text) is told
        for model, trace in tracers.items():
            caplog.clear()
            wanted = ["--test-triple", "0", "0", "4"] if trace is tracin_pytorch.main else ["--test", graph_files.test]
            arguments = ["--model-path", out / model, "--train", graph_files.train, *mappings, *wanted]
            trace([*map(str, arguments), "--output", str(tmp_path / "influences.json")])
            assert ("was trained on other triples than those of --train, to which it is traced" in caplog.text) is told


# ---------------------------------------------------------------------------------------------------------------
# Bad input: one line with file and line number, exit code 2, nothing written


def append(name, text):
    def spoil(files):
        path = getattr(files, name)
        path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")

    return spoil


def replace(name, content):
    def spoil(files):
        path = getattr(files, name)
        path.write_bytes(content)

    return spoil


def remove(name):
    return lambda files: getattr(files, name).unlink()


BAD_INPUTS = {
    "two columns": (append("train", "aspirin\ttreats\n"), r"train.tsv:12: "),
    "four columns": (append("valid", "aspirin\ttreats\tfièvre\t1\n"), r"valid.tsv:3: "),
    "unknown entity": (append("test", "aspirin\ttreats\taspirine\n"), r"test.tsv:4: unknown entity 'aspirine'"),
    "unknown relation": (append("train", "aspirin\tcures\tfièvre\n"), r"train.tsv:12: unknown relation 'cures'"),
    "empty file": (replace("train", b""), r"train.tsv: is empty"),
    "no file": (remove("valid"), r"valid.tsv: no such file"),
    "not UTF-8": (replace("train", b"aspirin\ttreats\t\xff\xfe\n"), r"train.tsv:1: "),
    "a gap in the ids": (append("entity_to_id", "extra\t9\n"), r"entity_to_id.tsv:7: "),
    "an id twice": (append("relation_to_id", "extra\t2\n"), r"relation_to_id.tsv:4: "),
    "a label twice": (append("entity_to_id", "aspirin\t6\n"), r"entity_to_id.tsv:7: "),
    "no training query but one": (
        replace("train", "aspirin\ttreats\tfièvre\n".encode()), r"at least two queries",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_is_one_line_and_writes_nothing(graph_files, tmp_path, monkeypatch, capsys, case):
    spoil, message = BAD_INPUTS[case]
    spoil(graph_files)
    assert run_main(monkeypatch, *graph_files.arguments(), "-o", tmp_path / "out", *QUICK) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert error.startswith("train_pytorch.py: error: ")
    assert re.search(message, error), error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("--embedding-width", "5"), "3 × 5 = 15, not embedding_dim 12"),
        (("--kernel-width", "5"), "kernel does not fit"),
        (("--resume-from-checkpoint", "no.pt"), "no.pt: no such file"),
    ],
)
def test_impossible_settings_are_one_line(graph_files, tmp_path, monkeypatch, capsys, settings, message):
    assert run_main(monkeypatch, *graph_files.arguments(), "-o", tmp_path / "out", *QUICK, *settings) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "out").exists()


def test_one_of_several_processes_trains_nothing_where_it_cannot_find_the_others(
    graph_files, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert run_main(monkeypatch, *graph_files.arguments(), "-o", tmp_path / "out", *QUICK) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "WORLD_SIZE is 2, but MASTER_ADDR, MASTER_PORT not set; start several processes with torchrun" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0)])
def test_a_wrong_command_line_is_one_line_of_all_processes(monkeypatch, capsys, rank, lines):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    assert run_main(monkeypatch, "--num-epochs", "many") == 2
    assert capsys.readouterr().err.count("\n") == lines


def test_a_single_process_of_torchrun_trains(graph_files, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert run_main(monkeypatch, *graph_files.arguments(), "-o", tmp_path / "out", *QUICK) == 0
    assert (tmp_path / "out/test_results.json").is_file()


def test_an_output_directory_that_is_a_file_is_one_line(graph_files, tmp_path, monkeypatch, capsys):
    (tmp_path / "out").write_text("occupied")
    assert run_main(monkeypatch, *graph_files.arguments(), "-o", tmp_path / "out", *QUICK) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "occupied"


def test_unknown_labels_are_skipped_when_asked(graph_files, tmp_path, monkeypatch, caplog):
    append("train", "aspirin\ttreats\tunheard of\n")(graph_files)
    out = tmp_path / "out"
    assert run_main(monkeypatch, *graph_files.arguments(), "-o", out, *QUICK, "--skip-unknown") == 0
    assert "1 of 12 triples" in caplog.text
    assert "unheard of" in caplog.text


def test_the_program_and_not_the_library_settles_what_becomes_of_freed_memory(graph_files, tmp_path, monkeypatch):
    asked, asked_before_training = [], []
    train = training_run.train

    def note_and_train(*arguments, **options):
        asked_before_training.extend(asked)
        return train(*arguments, **options)

    monkeypatch.setattr(memory, "keep_freed_memory", asked.append)
    monkeypatch.setattr(training_run, "train", note_and_train)
    assert run_main(monkeypatch, *graph_files.arguments(), "-o", tmp_path / "out", *QUICK) == 0
    assert asked == asked_before_training == ["cpu"]


def test_crlf_and_gzip_train_to_the_same_weights(graph_files, tmp_path, monkeypatch):

    assert run_main(monkeypatch, *graph_files.arguments(), "-o", tmp_path / "plain", *QUICK) == 0
    graph_files.valid.write_bytes(graph_files.valid.read_bytes().replace(b"\n", b"\r\n"))
    graph_files.train.write_bytes(gzip.compress(graph_files.train.read_bytes()))
    assert run_main(monkeypatch, *graph_files.arguments(), "-o", tmp_path / "other", *QUICK) == 0
    plain, other = (
        load_checkpoint(tmp_path / name / "final_model.pt")["model_state_dict"] for name in ("plain", "other")
    )
    assert all(torch.equal(weight, other[name]) for name, weight in plain.items())

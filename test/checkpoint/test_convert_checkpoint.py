import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conve_examples import assert_same, native_checkpoint, random_triples, trained_conve

import convert_checkpoint
from conve_tracin import cli
from conve_tracin.checkpoint import conversion
from conve_tracin.checkpoint.native import build_model, load_checkpoint, save_checkpoint
from conve_tracin.checkpoint.pykeen import build_pykeen_conve, load_pykeen_model, score_pykeen

SCRIPT = Path(convert_checkpoint.__file__)


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line in this process; return its exit code, standard output and standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["convert_checkpoint.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.run(convert_checkpoint.main)
        output = capsys.readouterr()
        return ended.value.code, output.out, output.err

    return run


@pytest.fixture
def native(tmp_path):
    path = tmp_path / "checkpoints" / "checkpoint_epoch_4.pt"
    save_checkpoint(path, native_checkpoint(*trained_conve()))
    return path


def test_conversion_there_and_back_gives_the_same_checkpoint(run, native, tmp_path):
    original = native.read_bytes()
    there, back = tmp_path / "there.pt", tmp_path / "back.pt"
    code, output, errors = run("--input", native, "--output", there, "--verify")
    assert (code, errors) == (0, "")
    assert "epoch 4, 30 entities, 8 relation rows, with optimizer state, verified: scores differ by at most" in output
    assert run("--input", there, "--output", back, "--to", "native", "--verify")[0] == 0
    assert native.read_bytes() == original
    expected, checkpoint = load_checkpoint(native), load_checkpoint(back)
    for content in (expected, checkpoint):
        content["model_state_dict"] = dict(content["model_state_dict"])
    assert_same(checkpoint, expected)


def test_main_takes_the_arguments_as_the_other_scripts_do(native, tmp_path):
    convert_checkpoint.main(["--input", str(native), "--output", str(tmp_path / "there.pt")])
    assert load_pykeen_model(tmp_path / "there.pt").epoch == load_checkpoint(native)["epoch"]


def test_converted_file_loads_strictly_into_pykeen(run, native, tmp_path):
    run("--input", native, "--output", tmp_path / "there.pt")
    content = torch.load(tmp_path / "there.pt", weights_only=True)
    model = build_pykeen_conve(content["model_config"]).eval()
    model.load_state_dict(content["model_state_dict"], strict=True)
    triples = random_triples(1000)
    expected = build_model(load_checkpoint(native)).score(*triples.T)
    torch.testing.assert_close(model.score_hrt(triples)[:, 0], expected, atol=1e-5, rtol=0)


def test_pykeen_state_dict_becomes_a_native_checkpoint(run, native, tmp_path):
    run("--input", native, "--output", tmp_path / "converted.pt")
    pykeen_model = load_pykeen_model(tmp_path / "converted.pt").model
    torch.save(pykeen_model.state_dict(), tmp_path / "state_dict.pt", pickle_protocol=5)
    code, _, errors = run(
        "--input", tmp_path / "state_dict.pt", "--output", tmp_path / "n.pt", "--to", "native", "--verify"
    )
    assert (code, errors) == (0, "")
    triples = random_triples(1000)
    model = build_model(load_checkpoint(tmp_path / "n.pt"))
    torch.testing.assert_close(model.score(*triples.T), score_pykeen(pykeen_model, triples), atol=1e-5, rtol=0)
    torch.save(pykeen_model, tmp_path / "trained_model.pkl")
    arguments = ("--input", tmp_path / "trained_model.pkl", "--output", tmp_path / "p.pt", "--to", "native", "--verify")
    assert run(*arguments)[0] == 2
    assert run(*arguments, "--trust-pickle")[0] == 0
    model = build_model(load_checkpoint(tmp_path / "p.pt"))
    torch.testing.assert_close(model.score(*triples.T), score_pykeen(pykeen_model, triples), atol=1e-5, rtol=0)


def test_height_and_width_can_be_given_where_the_weights_do_not_tell(run, tmp_path):
    config = {
        "num_entities": 5, "num_relations": 2, "embedding_dim": 16, "embedding_height": 4, "embedding_width": 4,
    }  # fmt: skip
    torch.save(build_pykeen_conve(config).state_dict(), tmp_path / "s.pt")
    arguments = ("--input", tmp_path / "s.pt", "--output", tmp_path / "n.pt", "--to", "native", "--verify")
    code, _, errors = run(*arguments)
    assert code == 2
    assert errors.startswith(f"convert_checkpoint.py: error: {tmp_path / 's.pt'}: its weights fit several")
    assert run(*arguments, "--embedding-width", "4")[0] == 0
    assert load_checkpoint(tmp_path / "n.pt")["model_config"]["embedding_height"] == 4


def test_sizes_that_the_file_holds_are_not_taken_from_the_flags(run, native, tmp_path, caplog):
    caplog.set_level("INFO")
    message = "--embedding-height and --embedding-width have no effect on {}, which holds its own"
    there, back = tmp_path / "there.pt", tmp_path / "back.pt"
    assert run("--input", native, "--output", there, "--embedding-height", "77")[0] == 0
    assert run("--input", there, "--output", back, "--to", "native", "--embedding-width", "77")[0] == 0
    assert caplog.messages == [message.format(native), message.format(there)]
    assert load_checkpoint(back)["model_config"] == load_checkpoint(native)["model_config"]


def test_outputs_are_not_overwritten_without_force(run, native, tmp_path):
    output = tmp_path / "out.pt"
    output.write_text("precious")
    code, _, errors = run("--input", native, "--output", output)
    assert code == 2
    assert errors == f"convert_checkpoint.py: error: {output}: exists already; give --force to overwrite it\n"
    assert output.read_text() == "precious"
    assert run("--input", native, "--output", output, "--force")[0] == 0
    assert load_pykeen_model(output).epoch == 4


def test_original_is_never_overwritten(run, native, tmp_path):
    original = native.read_bytes()
    link = tmp_path / "link.pt"
    os.link(native, link)
    for output in (native, link, native.parent / ".." / "checkpoints" / native.name):
        code, _, errors = run("--input", native, "--output", output, "--force")
        assert code == 2
        assert "is the checkpoint to convert, which stays as it is" in errors
    assert native.read_bytes() == original


@pytest.fixture
def directory(native):
    """Four checkpoints: two good, one cut off, one whose sizes contradict its weights."""
    folder = native.parent
    checkpoint = native_checkpoint(*trained_conve())
    save_checkpoint(folder / "checkpoint_epoch_12.pt", {**checkpoint, "epoch": 12})
    (folder / "checkpoint_epoch_6.pt").write_bytes(native.read_bytes()[:200])
    wrong = {**checkpoint["model_config"], "output_channels": 9}
    save_checkpoint(folder / "checkpoint_epoch_8.pt", {**checkpoint, "model_config": wrong})
    save_checkpoint(folder / "best_model.pt", checkpoint)
    return folder


def test_directory_is_converted_past_bad_files_with_exit_code_1(run, directory, tmp_path):
    output = tmp_path / "out"
    code, lines, errors = run("--input-dir", directory, "--output-dir", output, "--verify")
    assert code == 1
    assert sorted(path.name for path in output.iterdir()) == [
        "checkpoint_epoch_12_pykeen.pt",
        "checkpoint_epoch_4_pykeen.pt",
    ]
    assert [line.partition(" ->")[0] for line in lines.splitlines()[:-1]] == [
        str(directory / "checkpoint_epoch_4.pt"),
        str(directory / "checkpoint_epoch_12.pt"),
    ]
    assert lines.splitlines()[-1] == "2 converted, 0 kept, 2 failed"
    assert len(errors.splitlines()) == 2
    assert f"failed: {directory / 'checkpoint_epoch_6.pt'}: is damaged or no checkpoint" in errors
    assert f"failed: {directory / 'checkpoint_epoch_8.pt'}: conv1.weight has the shape (5, 1, 2, 4)" in errors
    for epoch in (4, 12):
        assert load_pykeen_model(output / f"checkpoint_epoch_{epoch}_pykeen.pt").epoch == epoch


def test_directory_keeps_outputs_that_exist_and_takes_none_for_an_input(run, directory):
    arguments = ("--input-dir", directory, "--output-dir", directory, "--pattern", "*[24]*.pt")
    code, lines, _ = run(*arguments)
    assert (code, lines.splitlines()[-1]) == (0, "2 converted, 0 kept, 0 failed")
    written = (directory / "checkpoint_epoch_4_pykeen.pt").stat().st_mtime_ns
    code, lines, _ = run(*arguments)
    assert (code, lines.splitlines()[-1]) == (0, "0 converted, 2 kept, 0 failed")
    assert (directory / "checkpoint_epoch_4_pykeen.pt").stat().st_mtime_ns == written
    code, lines, _ = run(*arguments, "--force")
    assert (code, lines.splitlines()[-1]) == (0, "2 converted, 0 kept, 0 failed")
    code, lines, _ = run(
        "--input-dir", directory, "--output-dir", directory, "--pattern", "*_pykeen.pt", "--to", "native"
    )
    assert (code, lines.splitlines()[-1]) == (0, "2 converted, 0 kept, 0 failed")
    assert load_checkpoint(directory / "checkpoint_epoch_12_pykeen_native.pt")["epoch"] == 12


def test_pattern_without_a_match_is_an_input_error(run, tmp_path):
    code, _, errors = run("--input-dir", tmp_path, "--output-dir", tmp_path, "--pattern", "*.ckpt")
    assert code == 2
    assert "no file matches '*.ckpt'" in errors


def test_a_directory_that_cannot_be_written_is_one_input_error(run, directory):
    (directory / "occupied").write_text("a file")
    code, lines, errors = run("--input-dir", directory, "--output-dir", directory / "occupied")
    assert (code, lines) == (2, "")
    assert "is a file; --output-dir needs a directory" in errors
    assert len(errors.splitlines()) == 1


def swap_two_biases(monkeypatch):
    """Exchange the names of two vectors of the same length: loading stays strict, and the scores are wrong."""
    names = dict(conversion.NATIVE_TO_PYKEEN)
    names["conv1.bias"], names["bn1.bias"] = names["bn1.bias"], names["conv1.bias"]
    monkeypatch.setattr(conversion, "NATIVE_TO_PYKEEN", names)


def test_verification_fails_loudly_and_writes_nothing(run, directory, tmp_path, monkeypatch):
    swap_two_biases(monkeypatch)
    native = directory / "checkpoint_epoch_4.pt"
    code, lines, errors = run("--input", native, "--output", tmp_path / "out" / "one.pt", "--verify")
    assert (code, lines) == (1, "")
    assert errors.startswith(
        f"convert_checkpoint.py: verification failed: {native}: the converted model's scores differ"
    )
    code, lines, _ = run("--input-dir", directory, "--output-dir", tmp_path / "out", "--verify")
    assert (code, lines) == (1, "0 converted, 0 kept, 4 failed\n")
    assert list((tmp_path / "out").iterdir()) == []


def test_name_map_of_the_documents_does_not_load(run, native, tmp_path, monkeypatch):
    documented = {name: pykeen.replace("hr1d.2", "hr1d.1") for name, pykeen in conversion.NATIVE_TO_PYKEEN.items()}
    monkeypatch.setattr(conversion, "NATIVE_TO_PYKEEN", documented)
    code, _, errors = run("--input", native, "--output", tmp_path / "out.pt", "--verify")
    assert code == 2
    assert "its weights do not fit its model_config" in errors
    assert 'Missing key(s) in state_dict: "interaction.hr1d.2.weight"' in errors


def test_converted_file_is_no_input_for_the_same_direction(run, native, tmp_path):
    run("--input", native, "--output", tmp_path / "converted.pt")
    code, _, errors = run("--input", tmp_path / "converted.pt", "--output", tmp_path / "again.pt")
    assert code == 2
    assert "holds PyKEEN's weights already; --to native converts it back" in errors
    code, _, errors = run("--input", native, "--output", tmp_path / "again.pt", "--to", "native")
    assert code == 2
    assert f"{native}: is a native checkpoint already" in errors


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("to", ["pykeen", "native"])
@pytest.mark.parametrize("protocol", [2, 5])
def test_checkpoint_that_would_run_code_is_refused(run, tmp_path, to, protocol):
    path, marker = tmp_path / "checkpoint.pt", tmp_path / "ran"
    torch.save({"model_state_dict": {"fc.weight": Payload(marker)}}, path, pickle_protocol=protocol)
    code, _, errors = run("--input", path, "--output", tmp_path / "out.pt", "--to", to)
    assert code == 2
    assert len(errors.splitlines()) == 1
    assert "could run code" in errors
    assert not marker.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "one of the arguments --input --input-dir is required"),
        (("--input", "a.pt"), "--input needs --output"),
        (("--input-dir", "a"), "--input-dir needs --output-dir"),
        (("--input", "a.pt", "--output-dir", "b"), "--input needs --output"),
        (("--input", "a.pt", "--output", "b.pt", "--to", "onnx"), "invalid choice"),
        (("--input", "absent.pt", "--output", "b.pt"), "absent.pt: no such file"),
    ],
)
def test_wrong_command_lines_are_one_line_and_exit_code_2(run, arguments, message):
    code, _, errors = run(*arguments)
    assert code == 2
    assert message in errors
    assert len(errors.splitlines()) == 1


def test_help_needs_neither_torch_nor_pykeen(tmp_path):
    program = (
        "import runpy, sys; sys.modules.update(dict.fromkeys(('torch', 'pykeen', 'numpy', 'pandas'))); "
        f"sys.argv[1:] = ['--help']; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=SCRIPT.parent, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "--verify" in result.stdout


def test_documented_name_is_importable():
    assert convert_checkpoint.convert_pytorch_to_pykeen_state_dict is conversion.convert_pytorch_to_pykeen_state_dict
    assert not hasattr(convert_checkpoint, "no_such_name")

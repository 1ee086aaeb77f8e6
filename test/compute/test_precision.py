"""Exact products on a GPU: what a machine without one can tell of them."""

import pytest
import torch
from native_files import files, run  # noqa: F401 - the fixture

from conve_tracin.compute.device import choose_device
from conve_tracin.explanation import read as reading
from conve_tracin.influence.engine.passes import choose_batch_size
from conve_tracin.influence.engine.shared_queries import CPU_BATCH_FEATURES, GPU_BATCH_FEATURES


def tf32_is_on():
    return {torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32}


@pytest.fixture(autouse=True)
def as_torch_starts():
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.matmul.allow_tf32 = False


def test_the_device_that_a_script_chooses_multiplies_exactly():
    assert choose_device("cpu") == "cpu"
    assert tf32_is_on() == {False}


@pytest.mark.parametrize(
    ("flags", "available", "told", "on"),
    [
        ([], True, None, False),
        (["--use-tf32"], True, None, True),
        (["--use-tf32"], False, "on this cpu, which has no TensorFloat-32", False),
        (["--use-tf32", "--engine", "reference"], True, "on the reference loop", False),
        (["--use-tf32", "--use-mixed-precision"], True, "beside --use-mixed-precision", False),
        (["--use-tf32", "--method", "gauss-newton"], True, "with --method gauss-newton", False),
    ],
)
def test_tf32_is_on_where_it_was_asked_for(files, flags, available, told, on, caplog, monkeypatch):
    monkeypatch.setattr(reading, "supports_tf32", lambda _: available)
    monkeypatch.setattr(reading, "supports_bfloat16", lambda _: True)
    caplog.set_level("INFO")
    report = files["out.json"].with_suffix(".html")
    where = ["--output", str(files["out.json"]), "--report", str(report), "--device", "cpu"]
    run(files, "--test-triple", "0", "1", "2", *where, *flags)
    assert tf32_is_on() == {on}
    assert ("TensorFloat" in report.read_text(encoding="utf-8")) == on
    messages = [message for message in caplog.messages if message.startswith("--use-tf32 has no effect")]
    assert len(messages) == (told is not None)
    assert all(told in message for message in messages)


@pytest.mark.parametrize("available", [True, False])
@pytest.mark.parametrize("more", [[], ["--use-tf32"]])
def test_the_report_names_the_precision_that_held(files, more, available, monkeypatch):
    monkeypatch.setattr(reading, "supports_bfloat16", lambda _: available)
    monkeypatch.setattr(reading, "supports_tf32", lambda _: True)
    report = files["out.json"].with_suffix(".html")
    where = ["--output", str(files["out.json"]), "--report", str(report), "--device", "cpu"]
    run(files, "--test-triple", "0", "1", "2", *where, "--use-mixed-precision", *more)
    expected = "bfloat16" if available else "TensorFloat" if more else "full precision"
    text = report.read_text(encoding="utf-8")
    assert [name for name in ("bfloat16", "TensorFloat", "full precision") if name in text] == [expected]


@pytest.mark.parametrize("features", [896, 10_368])
def test_batches_fill_a_cache_or_a_gpu_unless_the_user_says(features, monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    fast = choose_batch_size(256, features=features, device=cpu)
    assert CPU_BATCH_FEATURES * 0.98 < fast * features <= CPU_BATCH_FEATURES
    assert [choose_batch_size(size, features=features, device=cpu) for size in (1, fast, 10 * fast)] == [1, fast, fast]
    for free_bytes, most in ((80e9, GPU_BATCH_FEATURES), (1e9, 1e9 / 64)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free_bytes: (int(free), 80_000_000_000))
        assert most * 0.98 < choose_batch_size(256, features=features, device=gpu) * features <= most
        assert [choose_batch_size(size, features=features, device=gpu) for size in (1, 100, 1000)] == [1, 100, 1000]

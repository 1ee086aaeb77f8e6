"""Exact products on a GPU: what a machine without one can tell of them."""

import pytest
import torch
from test_cli_tracin import files, run  # noqa: F401 - the fixture

from conve_tracin import analysis, cli
from conve_tracin.influence.conve import GPU_BATCH_FEATURES, choose_batch_size
from conve_tracin.model import ConvE


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
    assert cli.choose_device("cpu") == "cpu"
    assert tf32_is_on() == {False}


@pytest.mark.parametrize(
    ("flags", "available", "told", "on"),
    [
        ([], True, None, False),
        (["--use-tf32"], True, None, True),
        (["--use-tf32", "--method", "gauss-newton"], True, None, True),
        (["--use-tf32"], False, "this cpu has no TensorFloat-32", False),
        (["--use-tf32", "--engine", "reference"], True, "on the reference loop", False),
    ],
)
def test_tf32_is_on_where_it_was_asked_for(files, flags, available, told, on, caplog, monkeypatch):  # noqa: F811
    monkeypatch.setattr(analysis, "supports_tf32", lambda _: available)
    caplog.set_level("INFO")
    run(files, "--test-triple", "0", "1", "2", "--output", str(files["out.json"]), "--device", "cpu", *flags)
    assert tf32_is_on() == {on}
    messages = [message for message in caplog.messages if message.startswith("--use-tf32 has no effect")]
    assert len(messages) == (told is not None)
    assert all(told in message for message in messages)


@pytest.mark.parametrize(("height", "width"), [(10, 20), (4, 8)])
def test_batches_fill_a_gpu_unless_the_user_says(height, width):
    model = ConvE(
        num_entities=5, num_relations=2, embedding_dim=height * width, embedding_height=height, embedding_width=width
    )
    assert choose_batch_size(256, model) <= 256
    gpu_model = model.to("meta")  # no CPU, and here everywhere
    numbers = choose_batch_size(256, gpu_model) * model.config.feature_map_size
    assert GPU_BATCH_FEATURES * 0.99 < numbers <= GPU_BATCH_FEATURES
    assert [choose_batch_size(size, gpu_model) for size in (1, 100, 1000)] == [1, 100, 1000]

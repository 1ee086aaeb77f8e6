"""The encoder by patches against the model's own in training mode: values, gradients, running statistics."""

import copy

import pytest
import torch
from conftest import make_small_conve
from conve_examples import SIZES, trained_conve

from conve_tracin.training.batch_loss import encode_rows_by_patches

NO_DROPOUT = {"input_dropout": 0.0, "feature_map_dropout": 0.0, "output_dropout": 0.0}


def random_rows(batch_size, dim, dtype):
    generator = torch.Generator().manual_seed(5)
    draw = [1 + 2 * torch.randn(batch_size, dim, generator=generator, dtype=torch.float64) for _ in range(2)]
    return [rows.to(dtype).requires_grad_() for rows in draw]


def outcome(model, encode, *, batch_size, dtype):
    """Encode and go back with a random gradient; return everything that comes of it."""
    model = copy.deepcopy(model).to(dtype).train()
    rows = random_rows(batch_size, model.config.embedding_dim, dtype)
    queries = encode(model, *rows)
    weights = torch.randn(queries.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(dtype)
    (queries * weights).sum().backward()
    gradients = {
        name: parameter.grad for name, parameter in model.named_parameters() if not name.startswith(("entity", "rel"))
    }
    return {"queries": queries, "heads": rows[0].grad, "relations": rows[1].grad, **gradients} | dict(
        model.named_buffers()
    )


def assert_close(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # Gradients that are zero but for rounding are compared with the others' size.
        size = max(value.abs().max().item(), 1.0)
        assert (found[name] - value).abs().max().item() <= tolerance * size, name


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-3)])
@pytest.mark.parametrize("batch_size", [2, 7, 64])
@pytest.mark.parametrize("setting", SIZES)
def test_equals_the_models_encoder(setting, batch_size, dtype, tolerance):
    model, _ = trained_conve(setting, **NO_DROPOUT)
    results = [
        outcome(model, encode, batch_size=batch_size, dtype=dtype)
        for encode in (encode_rows_by_patches, lambda model, *rows: model.encode_rows(*rows))
    ]
    assert_close(*results, tolerance)


def test_negative_scales_and_far_statistics():
    model = make_small_conve(**NO_DROPOUT)
    with torch.no_grad():
        model.bn1.weight.mul_(-1)
    results = [
        outcome(model, encode, batch_size=9, dtype=torch.float64)
        for encode in (encode_rows_by_patches, lambda model, *rows: model.encode_rows(*rows))
    ]
    assert_close(*results, 1e-10)


def test_dropout_takes_whole_maps_at_its_rate_and_keeps_the_mean():
    model = make_small_conve(input_dropout=0.0, feature_map_dropout=0.4, output_dropout=0.0).train()
    seen = []
    model.fc.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    rows = [row.detach() for row in random_rows(500, 12, torch.float64)]
    torch.manual_seed(0)
    encode_rows_by_patches(model, *rows)
    model.feature_map_dropout.p = 0.0
    encode_rows_by_patches(model, *rows)
    dropped, full = (features.view(500, 4, -1) for features in seen)
    is_dropped = (dropped == 0).all(dim=2)
    has_any = (full > 0).any(dim=2)
    assert (is_dropped & has_any).sum() / has_any.sum() == pytest.approx(0.4, abs=0.04)
    kept = ~is_dropped
    torch.testing.assert_close(dropped[kept], full[kept] / 0.6)

"""Small ConvE models whose BatchNorm statistics and weights are far from their start."""

import copy

import torch

from conve_tracin.model.conve import ConvE

# Image and kernel sizes that cannot be taken for one another: non-square, even, and as tall as the whole image.
SIZES = {
    "square-kernel": {"embedding_height": 4, "embedding_width": 5, "kernel_height": 3, "kernel_width": 3},
    "wide-kernel": {"embedding_height": 3, "embedding_width": 8, "kernel_height": 2, "kernel_width": 4},
    "tall-kernel": {"embedding_height": 6, "embedding_width": 3, "kernel_height": 12, "kernel_width": 1},
}
CHANNELS = {"square-kernel": 6, "wide-kernel": 5, "tall-kernel": 3}


def trained_conve(
    setting: str = "wide-kernel",
    *,
    num_entities: int = 30,
    num_relations: int = 8,
    entity_bias: bool = False,
    steps: int = 8,
    **sizes: float,
) -> tuple[ConvE, torch.optim.Adam]:
    """Train on random labels in training mode, so that no BatchNorm, bias or moment is at its start."""
    torch.manual_seed(7)
    image = SIZES[setting]
    model = ConvE(
        num_entities=num_entities,
        num_relations=num_relations,
        embedding_dim=image["embedding_height"] * image["embedding_width"],
        output_channels=CHANNELS[setting],
        entity_bias=entity_bias,
        **image,
        **sizes,
    )
    with torch.no_grad():
        model.entity_embeddings.weight.mul_(3).add_(0.5)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(steps):
        train_step(
            model, optimizer, lambda batch: model(*batch.T), num_entities=num_entities, num_relations=num_relations
        )
    return model.eval(), optimizer


def train_step(model, optimizer, score_all_tails, *, num_entities: int = 30, num_relations: int = 8) -> None:
    """Take one optimizer step; `score_all_tails` maps (B, 2) heads and rows of the relation table to (B, K)."""
    batch = torch.stack([torch.randint(num_entities, (16,)), torch.randint(num_relations, (16,))], dim=1)
    labels = torch.randint(2, (16, num_entities)).float()
    optimizer.zero_grad()
    torch.nn.functional.binary_cross_entropy_with_logits(score_all_tails(batch), labels).backward()
    optimizer.step()


def random_triples(count: int, *, num_entities: int = 30, num_relations: int = 8) -> torch.Tensor:
    """Draw (count, 3) triples of ids."""
    columns = [torch.randint(upper, (count,)) for upper in (num_entities, num_relations, num_entities)]
    return torch.stack(columns, dim=1)


def native_checkpoint(model: ConvE, optimizer: torch.optim.Optimizer, **more) -> dict:
    """Collect what a checkpoint of training holds, as copies: a file would not follow further training either."""
    content = {
        "epoch": 4,
        "model_state_dict": model.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "model_config": model.config.as_dict(),
        "training_config": {"inverse_triples": False, "batch_size": 16},
        "learning_rate": 0.015,
        "metrics": {"mean_reciprocal_rank": 0.25},
        "random_state": {"cpu": torch.get_rng_state(), "cuda": None},
        "mapping_digest": {"entity": "e", "relation": "r"},
        **more,
    }
    return copy.deepcopy(content)


def assert_same(left, right) -> None:
    """Compare nested checkpoints; tensors bit for bit."""
    assert type(left) is type(right)
    if isinstance(left, dict):
        assert set(left) == set(right)
        for key, value in left.items():
            assert_same(value, right[key])
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
    elif isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype
        assert torch.equal(left, right)
    else:
        assert left == right

"""Small models of six classes, trained for two epochs by PyKEEN on Nations, and their gradients by hand."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from pykeen import models
from pykeen.datasets import Nations
from pykeen.training import SLCWATrainingLoop

TRAINING_TRIPLES = Nations().training.mapped_triples.numpy()
SIZES = {
    "ConvE": {"embedding_dim": 12, "embedding_height": 3, "embedding_width": 4, "output_channels": 3},
    "DistMult": {"embedding_dim": 6},
    "ComplEx": {"embedding_dim": 6},
    "TransE": {"embedding_dim": 6},
    "RotatE": {"embedding_dim": 6},
    "TuckER": {"embedding_dim": 6, "relation_dim": 4},
}


@lru_cache
def trained_state(name: str, *, inverse_triples: bool) -> dict[str, torch.Tensor]:
    model = fresh_model(name, inverse_triples=inverse_triples)
    factory = training_factory(inverse_triples=inverse_triples)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    loop = SLCWATrainingLoop(model=model, triples_factory=factory, optimizer=optimizer)
    loop.train(triples_factory=factory, num_epochs=2, batch_size=256, use_tqdm=False, use_tqdm_batch=False)
    return model.state_dict()


@lru_cache
def training_factory(*, inverse_triples: bool = False):
    return Nations(create_inverse_triples=inverse_triples).training


def fresh_model(name: str, *, inverse_triples: bool = False):
    factory = training_factory(inverse_triples=inverse_triples)
    return getattr(models, name)(triples_factory=factory, random_seed=3, **SIZES[name])


def trained_model(name: str, *, inverse_triples: bool = False, dtype: torch.dtype = torch.float64):
    model = fresh_model(name, inverse_triples=inverse_triples)
    model.load_state_dict(trained_state(name, inverse_triples=inverse_triples))
    return model.to(dtype).eval()


def gradients_by_hand(model, triples, names=None) -> torch.Tensor:
    """∇ℓ of each triple (N, 3), by backward passes from score_hrt: (N, P). With inverses, relation r is row 2r."""
    parameters = dict(model.named_parameters())
    rows = []
    # PyKEEN's graph networks keep their vectors in eval mode, and a graph serves one backward pass only.
    keeping = [
        m for m in model.modules() if hasattr(m, "enriched_embeddings") or hasattr(m, "enriched_representations")
    ]
    for head, relation, tail in triples.tolist():
        for module in keeping:
            module.enriched_embeddings = module.enriched_representations = None
        model.zero_grad(set_to_none=True)
        row = 2 * relation if model.use_inverse_triples else relation
        score = model.score_hrt(torch.tensor([[head, row, tail]]))
        # Binary cross-entropy with the label 1; torch's own function loses the slope of large scores in float32.
        F.softplus(-score).sum().backward()
        parts = [parameters[name] for name in names or parameters]
        rows.append(torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parts]))
    model.zero_grad(set_to_none=True)
    return torch.stack(rows)

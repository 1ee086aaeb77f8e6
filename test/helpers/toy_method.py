"""A method that prefers training triples with the test triple's tail: what a new method's file needs."""

import torch

from conve_tracin.influence.method import Method, as_ids


class SameTail(Method):
    """Scores 2 for the same tail, and 1 for every triple's influence on itself."""

    uses_learning_rate = False

    def products(self, test_triples, training_triples, *, batch_size=256, progress=None):
        tests, training = as_ids(test_triples), as_ids(training_triples)
        return torch.from_numpy(2.0 * (tests[:, None, 2] == training[None, :, 2]))

    def self_products(self, triples, *, batch_size=256, progress=None):
        return torch.ones(len(as_ids(triples)), dtype=torch.float64)


def build(loaded, options, graph, say):
    say(f"{loaded.path}: {len(graph.listed_triples)} training triples")
    return SameTail()


def title(options):
    return "same tail"


def members(options):
    return {"toy": True}

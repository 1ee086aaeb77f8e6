"""What several processes share, as each of them sees it: started as a script, it prints a list of JSON objects."""

import json

import numpy as np
import torch
from conftest import make_small_conve

from conve_tracin.compute import parallel

TRIPLES = np.array([[4, 1, 2], [0, 0, 3]])


def see():
    rank = parallel.rank()
    model = make_small_conve()
    for norm in (model.bn0, model.bn1, model.bn2):
        norm.running_mean.fill_(rank)
        norm.running_var.fill_(1 + rank)
    parallel.average_statistics(model)
    copied = make_small_conve()
    copied.fc.weight.data.fill_(rank - 7)
    copied.bn0.num_batches_tracked.fill_(rank + 5)
    parallel.broadcast_weights(copied)
    return {
        "rank": rank,
        "announced": parallel.broadcast({"of": rank}),
        "sum": parallel.all_reduce(torch.tensor([rank, 10.0])).tolist(),
        "share of a batch": parallel.share_of_batch(torch.arange(8)).tolist(),
        # Two triples for three processes, and scores that do not lie in memory in their order.
        "computed": parallel.compute_shared(lambda part: torch.from_numpy(part).T, TRIPLES).tolist(),
        "statistics": sorted({value for name, buffer in model.named_buffers() if "running" in name
                              for value in buffer.tolist()}),
        "batches": model.bn0.num_batches_tracked.item(),
        "copied": [copied.fc.weight.min().item(), copied.fc.weight.max().item(), copied.bn0.num_batches_tracked.item()],
    }  # fmt: skip


if __name__ == "__main__":
    with parallel.processes():
        seen = parallel.all_gather(see())
        if parallel.is_main_process():
            print(json.dumps(seen))

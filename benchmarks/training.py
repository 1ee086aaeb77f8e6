#!/usr/bin/env python3
"""Training: queries per second and peak memory of PyKEEN's loop, a plain dense loop and ours, in one run.

    python benchmarks/training.py --data FB15k-237.tar.gz

Without --data a synthetic graph of FB15k-237's sizes is drawn; with --large one of 400,000 entities, for models of 32
dimensions in batches of 32,768:

    python benchmarks/training.py --large --rounds 1

With --against DIR this version's full loss takes turns with that of another version, and with --neighbour a version's
batches take turns with its batches beside a process of as many threads that multiplies matrices:

    python benchmarks/training.py --large --against OTHER --rounds 1 --threads 1
    python benchmarks/training.py --neighbour --against OTHER --threads 2

Every contender trains in a process of its own, so that none inherits another's memory. They take turns in several
rounds, since a machine's speed changes; figures are the medians of the rounds, and ratios those of the ratios within
each. Rates are of wall-clock time; `processor_queries_per_second` is per second of processor time, which other work on
the machine disturbs less. The last line is JSON.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import common, versions
from conve_tracin.compute.device import set_tf32
from conve_tracin.compute.memory import keep_freed_memory
from conve_tracin.data.queries import Queries
from conve_tracin.model.conve import ConvE
from conve_tracin.ranking.ranks import rank_triples
from conve_tracin.settings import TrainingConfig
from conve_tracin.training.loop import choose_batch_loss, train_batch, training_queries
from conve_tracin.training.state import new_state

LABEL_SMOOTHING = 0.1
# The sizes of a large biomedical graph, of one million triples of it, and of its models.
LARGE_GRAPH = {"triples": 1_000_000, "entities": 400_000, "relations": 300, "pairs": 700_000}
LARGE_MODEL = {"embedding_dim": 32, "embedding_height": 4, "embedding_width": 8}
LARGE_BATCH = 32_768
# A contender that asks for more does not fit.
LARGE_MEMORY = 20 * 2**30
# A GPU works while the program prepares its next batches, as in training, and records the first ones.
WARM_UP_BATCHES = {"cpu": 3, "cuda": 10}
BATCHES_AT_ONCE = {"cpu": 1, "cuda": 10}


def main() -> None:
    """Parse, measure, print."""
    args = parse_args()
    set_tf32(allowed=False)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.contender:
        if args.large:
            resource.setrlimit(resource.RLIMIT_AS, (LARGE_MEMORY, LARGE_MEMORY))
        common.print_json((CONTENDERS | {"memory": memory})[args.contender](args))
        return
    if args.against or args.neighbour:
        common.print_json({"machine": common.machine(), **measure_versions(args)}, args.output)
        return
    names = args.only or [name for name in CONTENDERS if name not in (SMALL_ALONE if args.large else LARGE_ALONE)]
    rounds = [measure_contenders(names) for _ in range(args.rounds)]
    against_pykeen, against_dense = ratios(rounds, "pykeen"), ratios(rounds, "dense")
    result = {
        "machine": common.machine(),
        "batch_size": args.batch_size,
        "large": args.large,
        "rounds": args.rounds,
        "contenders": medians(rounds),
        "against_pykeen": {name: statistics.median(values) for name, values in against_pykeen.items()},
        "against_dense": {name: statistics.median(values) for name, values in against_dense.items()},
        "against_dense_in_each_round": against_dense,
        "processor_against_dense_in_each_round": ratios(rounds, "dense", "processor_queries_per_second"),
    }
    against_ours = ratios(rounds, "ours")
    result["against_ours"] = {name: statistics.median(values) for name, values in against_ours.items()}
    result["memory_in_batches_of_4096"] = []
    for num_entities in [] if args.large else args.memory_entities:
        measured = run_apart("memory", "--memory-entities", str(num_entities))
        result["memory_in_batches_of_4096"].append(measured)
        print(f"memory, {num_entities:>8,} entities {json.dumps(measured)}", flush=True)
    common.print_json(result, args.output)


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="FB15k-237 as published: folder or tar.gz")
    parser.add_argument("--large", action="store_true", help="400,000 entities, d = 32, batches of 32,768")
    parser.add_argument("--batch-size", type=int, help=f"256, or {LARGE_BATCH:,} with --large")
    parser.add_argument("--batches", type=int, help="batches to time, 30 or 1 with --large; PyKEEN gets a tenth")
    parser.add_argument("--rounds", type=int, default=3, help="how often each contender is measured, in turn")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="0: as many as torch chooses")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory-entities", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--against", type=Path, metavar="DIR", help="another version's root")
    parser.add_argument("--neighbour", action="store_true", help="how much longer a batch takes beside other work")
    parser.add_argument("--seconds", type=float, default=20, help="for how long each version trains, at least a batch")
    parser.add_argument("--loss", default="bce", choices=("bce", "ce"), help="of the versions that are compared")
    parser.add_argument("--only", nargs="*", help=f"of {', '.join(CONTENDERS)}")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help="also write the JSON here")
    args = parser.parse_args()
    args.batch_size = args.batch_size or (LARGE_BATCH if args.large else 256)
    args.batches = args.batches or (1 if args.large else 30)
    return args


def measure_versions(args: argparse.Namespace) -> dict[str, Any]:
    """Measure this version, and with --against another one, alone or beside a neighbour."""
    sizes = {
        "graph": LARGE_GRAPH if args.large else common.FB15K237,
        "model": model_sizes(args),
        "batch_size": args.batch_size,
        "loss": args.loss,
        "threads": torch.get_num_threads(),
        "warm_up": 0 if args.large else WARM_UP_BATCHES["cpu"],
        "seconds": args.seconds,
    }
    measure = versions.compare_beside_neighbour if args.neighbour else versions.compare
    return measure(args.against, sizes, rounds=args.rounds)


def run_apart(name: str, *more: str) -> dict[str, Any]:
    """Measure one contender in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--contender", name, *more]
    # As train_pytorch.py does.
    environment = os.environ | ({"OMP_WAIT_POLICY": "PASSIVE"} if name.startswith("ours") else {})
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return {"failed": "does not fit" if is_out_of_memory(reason) else reason}
    return json.loads(done.stdout.splitlines()[-1])


def is_out_of_memory(reason: str) -> bool:
    """Whether a process's last line says that memory did not suffice."""
    return any(
        words in reason for words in ("MemoryError", "allocate memory", "enough memory", "out of memory", "bad_alloc")
    )


def measure_contenders(names: list[str]) -> dict[str, dict[str, Any]]:
    """Measure each contender once, one after the other."""
    measured = {}
    for name in names:
        measured[name] = run_apart(name)
        print(f"{name:<22} {json.dumps(measured[name])}", flush=True)
    return measured


def medians(rounds: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Return each contender's figures, the medians of the rounds; or why it failed."""
    result = {}
    for name in rounds[0]:
        measured = [contenders[name] for contenders in rounds]
        failed = [one for one in measured if "failed" in one]
        if failed:
            result[name] = failed[0]
        else:
            result[name] = {key: statistics.median(one[key] for one in measured) for key in measured[0]}
    return result


def ratios(
    rounds: list[dict[str, dict[str, Any]]], base: str, key: str = "queries_per_second"
) -> dict[str, list[float]]:
    """Divide each contender's rate in each round by that of `base` in the same one, where both were measured."""
    result: dict[str, list[float]] = {}
    for contenders in rounds:
        base_rate = contenders.get(base, {}).get(key)
        for name, measured in contenders.items():
            if name != base and base_rate and measured.get(key):
                result.setdefault(name, []).append(round(measured[key] / base_rate, 2))
    return result


def load_graph(args: argparse.Namespace) -> tuple[np.ndarray, int, int]:
    """Return triples (N, 3) and the counts of entities and relations."""
    if args.data is not None:
        return common.read_split(args.data)
    sizes = LARGE_GRAPH if args.large else common.FB15K237
    return common.synthetic_triples(**sizes, seed=args.seed), sizes["entities"], sizes["relations"]


def time_batches(step: Callable[[], Any], args: argparse.Namespace) -> dict[str, float]:
    """Time `step`, one batch, after a warm-up; the rates are those of the median batch, or of a few on a GPU."""
    device_type = torch.device(args.device).type
    at_once = BATCHES_AT_ONCE[device_type]
    for _ in range(1 if args.large else WARM_UP_BATCHES[device_type]):
        step()
    synchronize(args.device)
    walls, processors = [], []
    for _ in range(max(1, args.batches // at_once)):
        wall, processor = time.perf_counter(), time.process_time()
        for _ in range(at_once):
            step()
        synchronize(args.device)
        walls.append(time.perf_counter() - wall)
        processors.append(time.process_time() - processor)
    queries = at_once * args.batch_size
    return {
        "queries_per_second": round(queries / statistics.median(walls), 1),
        "processor_queries_per_second": round(queries / statistics.median(processors), 1),
        "peak_memory_gb": round(peak_memory_gb(args.device), 3),
    }


def synchronize(device: str) -> None:
    """Wait for a GPU's work."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def peak_memory_gb(device: str) -> float:
    """Return the peak memory on the device, in 10⁹ bytes."""
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.startswith("cuda") else common.peak_memory_gb()


def random_batches(num_queries: int, args: argparse.Namespace) -> Iterator[torch.Tensor]:
    """Draw batches of queries without end."""
    generator = torch.Generator().manual_seed(args.seed)
    while True:
        yield torch.randint(num_queries, (args.batch_size,), generator=generator)


def model_sizes(args: argparse.Namespace) -> dict[str, int]:
    """Return the dimensions of the models; the defaults are d = 200."""
    return LARGE_MODEL if args.large else {}


def pykeen_loop(args: argparse.Namespace, *, negatives: bool = False) -> dict[str, float]:
    """PyKEEN 1.11.1: ConvE with binary cross-entropy in its LCWA loop, or with one negative for each triple (sLCWA)."""
    from pykeen.models import ConvE as PyKEENConvE
    from pykeen.training import LCWATrainingLoop, SLCWATrainingLoop
    from pykeen.triples import CoreTriplesFactory

    triples, num_entities, num_relations = load_graph(args)
    torch.manual_seed(args.seed)
    factory = CoreTriplesFactory(torch.from_numpy(triples), num_entities=num_entities, num_relations=num_relations)
    model = PyKEENConvE(
        triples_factory=factory, loss="bcewithlogits", random_seed=args.seed,
        **(model_sizes(args) or {"embedding_dim": 200, "embedding_height": 10, "embedding_width": 20}),
    ).to(args.device)  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters())
    loop = (SLCWATrainingLoop if negatives else LCWATrainingLoop)(
        model=model, triples_factory=factory, optimizer=optimizer
    )
    settings = {"batch_size": args.batch_size, "use_tqdm": False, "num_workers": 0}
    if not negatives:
        settings["label_smoothing"] = LABEL_SMOOTHING

    def train_epoch(queries: int) -> None:
        small = CoreTriplesFactory(
            torch.from_numpy(triples[keys <= pairs[queries - 1]]),
            num_entities=num_entities,
            num_relations=num_relations,
        )
        loop.train(small, num_epochs=1, **settings)
        synchronize(args.device)

    keys = triples[:, 0] * num_relations + triples[:, 1]
    pairs = np.unique(keys)[: (1 if args.large else max(2, args.batches // 10)) * args.batch_size]
    if args.device != "cpu":
        train_epoch(2 * args.batch_size)  # A GPU loads its code first.
    wall, processor = time.perf_counter(), time.process_time()
    train_epoch(len(pairs))
    return {
        "queries_per_second": round(len(pairs) / (time.perf_counter() - wall), 1),
        "processor_queries_per_second": round(len(pairs) / (time.process_time() - processor), 1),
        "peak_memory_gb": round(peak_memory_gb(args.device), 3),
    }


def dense_loop(args: argparse.Namespace, *, mixed: bool = False) -> dict[str, float]:
    """The plain PyTorch loop: all scores, a label matrix, binary cross-entropy, Adam."""
    triples, num_entities, num_relations = load_graph(args)
    queries = Queries.distinct(triples, args.device)
    torch.manual_seed(args.seed)
    model = ConvE(num_entities=num_entities, num_relations=num_relations, **model_sizes(args)).to(args.device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    batches = random_batches(len(queries), args)

    def step() -> None:
        chosen = next(batches).to(args.device)
        rows, tails = queries.tails_of(chosen)
        labels = torch.zeros(len(chosen), num_entities, device=args.device)
        labels[rows, tails] = 1
        labels = (1 - LABEL_SMOOTHING) * labels + LABEL_SMOOTHING / num_entities
        optimizer.zero_grad()
        with torch.autocast(torch.device(args.device).type, dtype=torch.bfloat16, enabled=mixed):
            scores = model(queries.heads[chosen], queries.relations[chosen])
        F.binary_cross_entropy_with_logits(scores.float(), labels).backward()
        optimizer.step()

    return time_batches(step, args)


def our_loop(args: argparse.Namespace, **settings: bool | int) -> dict[str, float]:
    """The loop of train_pytorch.py."""
    triples, num_entities, num_relations = load_graph(args)
    config = TrainingConfig(
        training_approach="kvsall", batch_size=args.batch_size, label_smoothing=LABEL_SMOOTHING, **settings
    )
    sizes = {"num_entities": num_entities, "num_relations": num_relations, **model_sizes(args)}
    step = our_step(triples, config, sizes, args)
    return time_batches(step, args)


def our_step(
    triples: np.ndarray, config: TrainingConfig, sizes: dict[str, int], args: argparse.Namespace
) -> Callable[[], Any]:
    """Return a function that trains one batch."""
    device = torch.device(args.device)
    keep_freed_memory(device)
    torch.manual_seed(args.seed)
    state = new_state(sizes, config, device)
    state.model.train()
    queries = training_queries(triples, config, device)
    batch_loss = choose_batch_loss(state, config)
    batches = random_batches(len(queries), args)
    return lambda: train_batch(state, queries, next(batches), batch_loss)


def memory(args: argparse.Namespace) -> dict[str, float]:
    """Peak memory beyond parameters, their gradients and Adam's two moments: batch 4,096, d = 32."""
    (num_entities,) = args.memory_entities
    args.batch_size = 4096
    generator = np.random.default_rng(args.seed)
    triples = generator.integers(0, (num_entities, 50, num_entities), (20_000, 3))
    config = TrainingConfig(training_approach="kvsall", batch_size=args.batch_size)
    sizes = {"embedding_dim": 32, "embedding_height": 4, "embedding_width": 8}
    sizes |= {"num_entities": num_entities, "num_relations": 50}
    step = our_step(triples, config, sizes, args)
    with torch.device("meta"):
        parameters = sum(parameter.nbytes for parameter in ConvE(**sizes).parameters())
    before = memory_now(args.device)
    for _ in range(WARM_UP_BATCHES[torch.device(args.device).type]):
        step()
    beyond = peak_memory_gb(args.device) - before - 3 * parameters / 1e9
    return {"entities": num_entities, "parameters_gb": round(parameters / 1e9, 4), "beyond_gb": round(beyond, 4)}


def memory_now(device: str) -> float:
    """Return the memory in use on the device, in 10⁹ bytes."""
    if device.startswith("cuda"):
        return torch.cuda.memory_allocated(device) / 1e9
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e9


def evaluation(args: argparse.Namespace) -> dict[str, float]:
    """Filtered ranking of tails: ours and PyKEEN's evaluator, triples per second, in fp32."""
    from pykeen.evaluation import RankBasedEvaluator
    from pykeen.triples import CoreTriplesFactory

    from conve_tracin.checkpoint.conversion import convert_pytorch_to_pykeen_state_dict
    from conve_tracin.checkpoint.pykeen import build_pykeen_conve

    triples, num_entities, num_relations = load_graph(args)
    torch.manual_seed(args.seed)
    model = ConvE(num_entities=num_entities, num_relations=num_relations).to(args.device).eval()
    chosen = np.random.default_rng(args.seed).permutation(triples)
    known = Queries.distinct(np.unique(triples, axis=0), args.device)
    ours, theirs = chosen[: args.batches * 256], chosen[:128]

    def rank(some: np.ndarray) -> None:
        rank_triples(model, some, known, num_relations=num_relations)

    pykeen_model = build_pykeen_conve(model.config.as_dict()).to(args.device).eval()
    pykeen_model.load_state_dict(
        convert_pytorch_to_pykeen_state_dict({"model_state_dict": model.state_dict()}), strict=True
    )
    factory = CoreTriplesFactory(torch.from_numpy(triples), num_entities=num_entities, num_relations=num_relations)

    def rank_by_pykeen(some: np.ndarray) -> None:
        RankBasedEvaluator(filtered=True).evaluate(
            pykeen_model, torch.from_numpy(some), additional_filter_triples=[factory.mapped_triples],
            use_tqdm=False, batch_size=32, targets=("tail",),
        )  # fmt: skip

    if args.device != "cpu":
        # A GPU loads its code first.
        rank(theirs)
        rank_by_pykeen(theirs)
    seconds, _ = common.seconds(lambda: rank(ours))
    pykeen_seconds, _ = common.seconds(lambda: rank_by_pykeen(theirs))
    rates = {"ours_triples_per_second": len(ours) / seconds, "pykeen_triples_per_second": len(theirs) / pykeen_seconds}
    return {name: round(rate, 1) for name, rate in rates.items()}


CONTENDERS: dict[str, Callable[[argparse.Namespace], dict[str, float]]] = {
    "pykeen": pykeen_loop,
    "dense": dense_loop,
    "dense, mixed": lambda args: dense_loop(args, mixed=True),
    "ours": our_loop,
    "ours, mixed": lambda args: our_loop(args, use_mixed_precision=True),
    "ours, compiled": lambda args: our_loop(args, use_torch_compile=True),
    "ours, compiled, mixed": lambda args: our_loop(args, use_torch_compile=True, use_mixed_precision=True),
    "pykeen, sLCWA": lambda args: pykeen_loop(args, negatives=True),
    "ours, 4,096 entities sampled": lambda args: our_loop(args, entity_sample=4096),
    "ours, 1,024 entities sampled": lambda args: our_loop(args, entity_sample=1024),
    "evaluation": evaluation,
}
# What is measured at one of the two sizes alone.
SMALL_ALONE = ("dense, mixed", "ours, compiled", "ours, compiled, mixed", "evaluation")
LARGE_ALONE = ("pykeen, sLCWA", "ours, 4,096 entities sampled")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""What preparing a KGX graph costs: time and peak memory on synthetic files.

    python benchmarks/kgx.py --edges 1000000 4000000 --output benchmarks/results/kgx.json

Nodes carry all ancestors of their category and edges about 400 bytes, as in ROBOKOP. Each size is prepared twice: by
prepare_data.py, which also writes what stands behind each edge (evidence.tsv.gz), and without that. Two sizes or more
give the cost of a further million edges, with the style that keeps them all. The last line is JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import common  # noqa: E402

KINDS = {
    "CHEBI": ["biolink:SmallMolecule", "biolink:MolecularEntity", "biolink:ChemicalEntity", "biolink:NamedThing"],
    "NCBIGene": ["biolink:Gene", "biolink:GeneOrGeneProduct", "biolink:BiologicalEntity", "biolink:NamedThing"],
    "MONDO": ["biolink:Disease", "biolink:DiseaseOrPhenotypicFeature", "biolink:NamedThing"],
    "UBERON": ["biolink:AnatomicalEntity", "biolink:OrganismalEntity", "biolink:NamedThing"],
}
PREDICATES = ["biolink:treats", "biolink:subclass_of", *(f"biolink:predicate_{number}" for number in range(30))]
ASPECTS, DIRECTIONS = ("activity", "expression", "abundance"), ("increased", "decreased")


def write_nodes(path: Path, number: int) -> list[str]:
    """Write nodes and return their ids."""
    prefixes = list(KINDS)
    ids = [f"{prefixes[place % len(prefixes)]}:{place:07d}" for place in range(number)]
    with path.open("w", encoding="utf-8") as file:
        for place, identifier in enumerate(ids):
            node = {"id": identifier, "name": f"entity number {place}", "category": KINDS[prefixes[place % 4]]}
            node["equivalent_identifiers"] = [f"A:{place}", f"B:{place}"]
            file.write(json.dumps(node) + "\n")
    return ids


def write_edges(path: Path, ids: list[str], number: int, *, at_a_time: int = 100_000) -> None:
    """Write edges with skewed ends, two in five of them with qualifiers."""
    rng = np.random.default_rng(0)
    sources = json.dumps({
        "primary_knowledge_source": "infores:ctd", "aggregator_knowledge_source": ["infores:one", "infores:two"],
        "knowledge_level": "prediction", "agent_type": "automated_agent",
    })[1:-1]  # fmt: skip
    qualifiers = [
        f', "qualified_predicate": "biolink:causes", "object_aspect_qualifier": "{aspect}", '
        f'"object_direction_qualifier": "{direction}"' for aspect in ASPECTS for direction in DIRECTIONS
    ]  # fmt: skip
    with path.open("w", encoding="utf-8") as file:
        for start in range(0, number, at_a_time):
            size = min(at_a_time, number - start)
            # Squaring a uniform draw gives a few hubs many edges, as in real graphs.
            ends = (len(ids) * rng.random((2, size)) ** 2).astype(np.int64).tolist()
            predicates = rng.integers(len(PREDICATES), size=size).tolist()
            papers = rng.integers(2**24, size=(3, size)).tolist()
            qualified = np.where(rng.random(size) < 0.4, rng.integers(len(qualifiers), size=size), -1).tolist()
            columns = zip(*ends, predicates, *papers, qualified, range(start, start + size), strict=True)
            file.writelines(
                f'{{"id": "urn:uuid:{place:016x}", "subject": "{ids[head]}", "predicate": "{PREDICATES[predicate]}", '
                f'"object": "{ids[tail]}", {sources}, "publications": ["PMID:{a}", "PMID:{b}", "PMID:{c}"]'
                f"{qualifiers[chosen] if chosen >= 0 else ''}}}\n"
                for head, tail, predicate, a, b, c, chosen, place in columns
            )


WITHOUT_EVIDENCE = """
import sys
from pathlib import Path
from conve_tracin.data.kgx.graph import read_kgx, write_kgx
nodes, edges, out = map(Path, sys.argv[1:])
shares = {"valid": 0.1, "test": 0.1}
write_kgx(read_kgx(nodes, edges, style="keepall", fractions=shares, test_predicate="biolink:treats"), out)
"""


def measure(directory: Path, ids: list[str], number: int) -> dict[str, Any]:
    """Prepare a graph of `number` edges with its evidence and without; return the sizes and what each took."""
    nodes, edges, out = directory / "nodes.jsonl", directory / "edges.jsonl", directory / "out"
    write_edges(edges, ids, number)
    command = [str(ROOT / "prepare_data.py"), "--nodes", str(nodes), "--edges", str(edges)]
    taken = cost_of([*command, "--test-predicate", "biolink:treats", "--output-dir", str(out)])
    return {
        "edges": number,
        "gigabytes": edges.stat().st_size / 1e9,
        "evidence_gigabytes": (out / "evidence.tsv.gz").stat().st_size / 1e9,
        **taken,
        "without_evidence": cost_of(["-c", WITHOUT_EVIDENCE, str(nodes), str(edges), str(directory / "plain")]),
    }


def cost_of(arguments: list[str]) -> dict[str, float]:
    """Run Python; return CPU and wall-clock seconds, and peak memory in 10⁹ bytes."""
    started = time.perf_counter()
    paths = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=paths
    )  # fmt: skip
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise SystemExit(f"failed: {' '.join(arguments)}")
    return {
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "wall_seconds": time.perf_counter() - started,
        "peak_memory_gb": usage.ru_maxrss * 1024 / 1e9,
    }


def cost_of_a_further_million(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what each further million edges adds, between the smallest and the largest of `runs`."""
    small, large = min(runs, key=lambda run: run["edges"]), max(runs, key=lambda run: run["edges"])
    millions = (large["edges"] - small["edges"]) / 1e6
    names = ("cpu_seconds", "peak_memory_gb")
    further = {name: (large[name] - small[name]) / millions for name in names}
    plain = {name: (large["without_evidence"][name] - small["without_evidence"][name]) / millions for name in names}
    return {**further, "without_evidence": plain}


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edges", type=int, nargs="+", default=[1_000_000, 4_000_000], help="sizes to measure")
    parser.add_argument("--nodes", type=int, default=300_000)
    parser.add_argument("--note", help="what else to know of the measurement")
    parser.add_argument("--output", type=Path, help="JSON file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        ids = write_nodes(directory / "nodes.jsonl", args.nodes)
        runs = [measure(directory, ids, number) for number in args.edges]
    result: dict[str, Any] = {"note": args.note, "machine": common.machine(), "nodes": args.nodes, "runs": runs}
    if len({run["edges"] for run in runs}) > 1:
        result["per_further_million"] = cost_of_a_further_million(runs)
    common.print_json(result, args.output)


if __name__ == "__main__":
    main()

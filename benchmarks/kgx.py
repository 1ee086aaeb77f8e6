#!/usr/bin/env python3
"""What preparing a KGX graph costs: time and peak memory of prepare_data.py on synthetic files.

    python benchmarks/kgx.py --edges 1000000 4000000 --output benchmarks/results/kgx.json

Nodes carry all ancestors of their category and edges about 400 bytes, as in ROBOKOP. Two sizes or more give the cost of
a further million edges, with the style that keeps them all. The last line is JSON.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

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


def write_edges(path: Path, ids: list[str], number: int) -> None:
    """Write edges with skewed ends, two in five of them with qualifiers."""
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(number):
            # Squaring a uniform draw gives a few hubs many edges, as in real graphs.
            subject, object_ = (ids[int(len(ids) * draw.random() ** 2)] for _ in range(2))
            edge = {
                "id": f"{draw.getrandbits(64):016x}",
                "subject": subject,
                "predicate": draw.choice(PREDICATES),
                "object": object_,
                "primary_knowledge_source": "infores:ctd",
                "aggregator_knowledge_source": ["infores:one", "infores:two"],
                "knowledge_level": "prediction",
                "agent_type": "automated_agent",
                "publications": [f"PMID:{draw.getrandbits(24)}" for _ in range(3)],
            }
            if draw.random() < 0.4:
                edge["qualified_predicate"] = "biolink:causes"
                edge["object_aspect_qualifier"] = draw.choice(ASPECTS)
                edge["object_direction_qualifier"] = draw.choice(DIRECTIONS)
            file.write(json.dumps(edge) + "\n")


def measure(directory: Path, ids: list[str], number: int) -> dict[str, Any]:
    """Prepare a graph of `number` edges; return its size, CPU and wall-clock seconds, and peak memory in 10⁹ bytes."""
    edges = directory / "edges.jsonl"
    write_edges(edges, ids, number)
    command = [sys.executable, str(ROOT / "prepare_data.py"), "--nodes", str(directory / "nodes.jsonl")]
    command += ["--edges", str(edges), "--test-predicate", "biolink:treats", "--output-dir", str(directory / "out")]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise SystemExit(f"prepare_data.py failed on {number} edges")
    return {
        "edges": number,
        "gigabytes": edges.stat().st_size / 1e9,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "wall_seconds": time.perf_counter() - started,
        "peak_memory_gb": usage.ru_maxrss * 1024 / 1e9,
    }


def cost_of_a_further_million(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Return what each further million edges adds, between the smallest and the largest of `runs`."""
    small, large = min(runs, key=lambda run: run["edges"]), max(runs, key=lambda run: run["edges"])
    millions = (large["edges"] - small["edges"]) / 1e6
    return {name: (large[name] - small[name]) / millions for name in ("cpu_seconds", "peak_memory_gb")}


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

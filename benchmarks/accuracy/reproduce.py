#!/usr/bin/env python3
"""Train by a recipe, and record the accuracy that it reaches on the test triples.

    python benchmarks/accuracy/reproduce.py umls
    python benchmarks/accuracy/reproduce.py fb15k-237 --data FB15k-237.tar.gz
    python benchmarks/accuracy/reproduce.py umls --recommended
    python benchmarks/accuracy/reproduce.py hetionet --recommended --data FOLDER --with entity-sample 4096
    python benchmarks/accuracy/reproduce.py hetionet --recommended --as-for 1000000 --data FOLDER

A recipe is a JSON file beside this script: flags of train_pytorch.py and their values, and under "then" what changes
after the last of its epochs, for a next stage that resumes from there. `--recommended` takes the training that
prepare_data.py advises for a graph of that size in place of a recipe, so that any name will do; `--as-for` says another
size. A run that was stopped goes on from its newest checkpoint. The last line is JSON, which also goes into --results.
"""

import argparse
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import common  # noqa: E402
from conve_tracin.commands import advised_training  # noqa: E402

RECIPES = Path(__file__).resolve().parent
RECOMMENDED = "recommended"
SPLITS = ("train", "valid", "test")
DEFAULT_SEED = 42
METRICS = ("mean_reciprocal_rank", "hits@1", "hits@3", "hits@10")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    recipes = sorted(path.stem for path in RECIPES.glob("*.json"))
    parser.add_argument("recipe", help=f"one of {', '.join(recipes)}; with --recommended any name")
    parser.add_argument("--recommended", action="store_true", help="train as prepare_data.py advises for the size")
    parser.add_argument("--as-for", type=int, metavar="TRIPLES", help="with --recommended: as for so many triples")
    parser.add_argument("--with", dest="changes", nargs=2, action="append", default=[], metavar=("FLAG", "VALUE"))
    parser.add_argument(
        "--data", type=Path, help="folder or tar.gz with train.txt, valid.txt, test.txt (default: what PyKEEN brings)"
    )
    parser.add_argument("--output-dir", type=Path, help="where data and models go (default: accuracy/RECIPE)")
    parser.add_argument("--random-seed", type=int, default=DEFAULT_SEED, help="of weights, order and dropout")
    parser.add_argument("--num-epochs", type=int, help="fewer epochs than the recipe's, where time is short")
    parser.add_argument("--no-gpu", action="store_true", help="train on the CPU even where there is a GPU")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "accuracy.json")
    args = parser.parse_args(argv)
    if not args.recommended and args.recipe not in recipes:
        parser.error(f"there is no recipe {args.recipe}; give one of {', '.join(recipes)}, or --recommended")
    if args.as_for is not None and not args.recommended:
        parser.error("--as-for says what is recommended; give --recommended too")
    return args


def recommended_settings(data: Path, as_for: int | None = None) -> dict[str, Any]:
    """Return the flags, without their dashes, that are advised for prepared files, and their values.

    `as_for` stands in for the number of their training triples.
    """
    num_triples, num_entities = (sum(1 for _ in (data / name).open("rb")) for name in ("train.txt", "entity_to_id.tsv"))
    advised = advised_training(as_for or num_triples, num_entities=num_entities)
    return {name.replace("_", "-"): value for name, value in advised.items()} | {"eval-frequency": 5}


def read_recipe(name: str) -> dict[str, Any]:
    """Return the flags of train_pytorch.py, without their dashes, and their values; "then" holds a next stage's."""
    return json.loads((RECIPES / f"{name}.json").read_text(encoding="utf-8"))


def stages_of(recipe: dict[str, Any], num_epochs: int | None = None) -> list[dict[str, Any]]:
    """Return the settings of each stage; `num_epochs` in place of the recipe's number may leave out the last ones.

    >>> stages_of({"loss": "ce", "num-epochs": 30, "then": {"label-smoothing": 0, "num-epochs": 34}})
    [{'loss': 'ce', 'num-epochs': 30}, {'loss': 'ce', 'num-epochs': 34, 'label-smoothing': 0}]
    """
    first = {flag: value for flag, value in recipe.items() if flag != "then"}
    if num_epochs is not None and ("then" not in recipe or num_epochs <= first["num-epochs"]):
        return [first | {"num-epochs": num_epochs}]
    return [first, *(stages_of(first | recipe["then"], num_epochs) if "then" in recipe else [])]


def flags(settings: dict[str, Any]) -> list[str]:
    """Turn settings into arguments: true is a flag by itself.

    >>> flags({"num-epochs": 5, "inverse-triples": True})
    ['--num-epochs', '5', '--inverse-triples']
    """
    return [part for name, value in settings.items() for part in ([f"--{name}"] + ([str(value)] * (value is not True)))]


def run_script(name: str, *arguments: str) -> None:
    """Run one of the suite's scripts; its own message ends the benchmark where it fails."""
    code = subprocess.run([sys.executable, str(ROOT / name), *arguments]).returncode
    if code:
        sys.exit(code)


def unpack(archive: Path, directory: Path) -> Path:
    """Write the three splits of a tar.gz into `directory`, which is returned."""
    directory.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as members:
        for member in members.getmembers():
            if Path(member.name).name in {f"{split}.txt" for split in SPLITS}:
                (directory / Path(member.name).name).write_bytes(members.extractfile(member).read())
    return directory


def prepare(name: str, data: Path | None, directory: Path) -> None:
    """Write the input files of train_pytorch.py unless an earlier run did."""
    if (directory / "relation_to_id.tsv").exists():
        return
    if data is None:
        source = ["--dataset", name]
    else:
        source = ["--triples", str(data if data.is_dir() else unpack(data, directory / "published"))]
    run_script("prepare_data.py", *source, "--output-dir", str(directory))


def read_history(model: Path) -> list[dict[str, Any]]:
    """Return the records of the epochs that lie behind a model; none where there is no model yet."""
    path = model / "training_history.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def train(stages: list[dict[str, Any]], data: Path, model: Path) -> dict[str, Any]:
    """Train stage after stage, or go on; return the test metrics and what the training took."""
    files = {split: data / f"{split}.txt" for split in SPLITS}
    files |= {name: data / f"{name.replace('-', '_')}.tsv" for name in ("entity-to-id", "relation-to-id")}
    for stage in stages:
        # A checkpoint of a later stage has more epochs behind it than this one may have. The last ranks in any case.
        if stage is stages[-1] or len(read_history(model)) < stage["num-epochs"]:
            run_script(
                "train_pytorch.py", *flags(files), *flags(stage), "--output-dir", str(model),
                "--resume-from-checkpoint", "auto",
            )  # fmt: skip
    results = json.loads((model / "test_results.json").read_text(encoding="utf-8"))
    history = read_history(model)
    return {
        **{metric: round(results[metric], 4) for metric in METRICS},
        "ranked": results["ranked"],
        "epochs": len(history),
        "best_epoch": results["epoch"],
        "training_seconds": round(sum(record["seconds"] for record in history), 1),
    }


def command_of(args: argparse.Namespace) -> str:
    """Return the command that gives this result again, wherever the data are."""
    epochs = "" if args.num_epochs is None else f" --num-epochs {args.num_epochs}"
    seed = "" if args.random_seed == DEFAULT_SEED else f" --random-seed {args.random_seed}"
    recommended = " --recommended" if args.recommended else ""
    recommended += "" if args.as_for is None else f" --as-for {args.as_for}"
    changes = "".join(f" --with {flag} {value}" for flag, value in args.changes)
    return f"python benchmarks/accuracy/reproduce.py {args.recipe}{recommended}{changes}{epochs}{seed}"


def record(path: Path, name: str, result: dict[str, Any]) -> None:
    """Add the result to the JSON file: recipe → seed → result."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    content.setdefault(name, {})[str(result["seed"])] = result
    common.print_json(content, path)


def main() -> None:
    """Prepare, train, and print what the model reaches."""
    args = parse_args()
    chosen = [RECOMMENDED] * args.recommended + ([] if args.as_for is None else [f"as for {args.as_for}"])
    name = ", ".join([args.recipe, *chosen, *map(" ".join, args.changes)])
    output_dir = args.output_dir or Path("accuracy") / name
    prepare(args.recipe, args.data, output_dir / "data")
    recipe = recommended_settings(output_dir / "data", args.as_for) if args.recommended else read_recipe(args.recipe)
    settings = recipe | dict(args.changes) | {"random-seed": args.random_seed}
    if args.no_gpu:
        settings["no-gpu"] = True
    stages = stages_of(settings, args.num_epochs)
    reached = train(stages, output_dir / "data", output_dir / f"model-{args.random_seed}")
    result = {"command": command_of(args), "seed": args.random_seed, "machine": common.machine(), **reached}
    record(args.results, name, result)


if __name__ == "__main__":
    main()

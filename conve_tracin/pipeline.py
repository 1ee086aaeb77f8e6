"""What the pipeline runs: a configuration to files and command lines. Snakefile_pytorch_conve decides when.

Commands are lists of words and never pass through a shell, so that directories may be called anything.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from conve_tracin import settings
from conve_tracin.checkpoint.epochs import EPOCH_CHECKPOINTS, epoch_in
from conve_tracin.data.prepare import ENTITY_FILE, NAME_FILE, RELATION_FILE, SPLITS
from conve_tracin.data.text import suggestion
from conve_tracin.errors import InputError
from conve_tracin.files import digest_of_file, lock_file, write_json
from conve_tracin.report.index_page import write_index_page
from conve_tracin.settings import TrainingConfig, flag_of

SCRIPTS = Path(__file__).resolve().parent.parent

PIPELINE_DEFAULTS: dict[str, Any] = {
    "base": "results", "style": "keepall", "num_explained": 5, "explain_together": False, "explain_threads": 1,
}  # fmt: skip
SOURCES = ("dataset", "triples", "nodes")
# With more, a job for each would take days to start, and minutes to be listed by Snakemake.
MOST_EXPLAINED_ALONE = 1000


class StepFailedError(Exception):
    """A step ended with an error; the message points to its log."""


@dataclass(frozen=True)
class Pipeline:
    """One configuration (the content of config.yaml, changed by --config) and all that follows from it.

    Raises InputError for settings that nothing knows, and for a graph from no source or from two.
    """

    config: Mapping[str, Any]

    def __post_init__(self) -> None:
        # Snakemake's --config reads true and false as words.
        words = {"true": True, "false": False}
        read = {name: words.get(str(value).lower(), value) for name, value in self.config.items()}
        object.__setattr__(self, "config", read)
        known = {*PIPELINE_DEFAULTS, *self._prepare_flags, *self._train_flags, *self._explain_flags}
        for name in self.config:
            if name not in known:
                raise InputError(f"config.yaml: no setting is called {name!r}; "
                                 + suggestion(name, known, otherwise="see docs/pipeline.md"))  # fmt: skip
        sources = [name for name in SOURCES if self.setting(name)]
        if len(sources) != 1:
            found = " and ".join(sources) or "none of them"
            raise InputError(f"config.yaml: give one of dataset, triples and nodes (with edges), and leave the others "
                             f"empty; {found} is given")  # fmt: skip
        for path in (str(self.root), *self.sources):
            if "{" in path or "}" in path:
                raise InputError(f"config.yaml: {path}: braces are wildcards to Snakemake; choose a path without")
        if not isinstance(self.setting("explain_together"), bool):
            raise InputError(
                f"config.yaml: explain_together is {self.setting('explain_together')!r}; give true or false"
            )
        for name in ("num_explained", "explain_threads"):
            if not isinstance(self.setting(name), int) or self.setting(name) < 1:
                raise InputError(f"config.yaml: {name} is {self.setting(name)!r}; give a whole number from 1")
        if self.setting("num_explained") > MOST_EXPLAINED_ALONE and not self.setting("explain_together"):
            raise InputError(
                f"config.yaml: num_explained is {self.setting('num_explained')} with a job for each; explain at most "
                f"{MOST_EXPLAINED_ALONE}, or all in one job with explain_together: true"
            )

    def setting(self, name: str) -> Any:
        """Return a setting, or its default; an empty one counts as missing."""
        value = self.config.get(name)
        return PIPELINE_DEFAULTS.get(name) if value is None or value == "" else value

    # Files

    @property
    def root(self) -> Path:
        """Where everything goes: {base}/{style}."""
        return Path(str(self.setting("base"))) / str(self.setting("style"))

    @property
    def is_kgx(self) -> bool:
        """Whether the graph comes from KGX files, which bring an edge map."""
        return bool(self.setting("nodes"))

    @property
    def sources(self) -> list[str]:
        """The files that the graph comes from; none for a dataset of PyKEEN, one for a directory of triples."""
        given = self.setting("triples") or [self.setting("nodes"), self.setting("edges")]
        given = given if isinstance(given, list) else [given]
        return [str(path) for path in given if path]

    @property
    def data(self) -> dict[str, Path]:
        """The files of the prepared graph, by what they hold."""
        names = {split: f"{split}.txt" for split in SPLITS}
        names |= {"entity_to_id": ENTITY_FILE, "relation_to_id": RELATION_FILE, "node_name_dict": NAME_FILE}
        if self.is_kgx:
            names["edge_map"] = "edge_map.json"
        return {name: self.root / "data" / file for name, file in names.items()}

    @property
    def model(self) -> Path:
        """The directory of the model and its checkpoints."""
        return self.root / "model"

    @property
    def test_results(self) -> Path:
        """What training writes last: it stands for the finished model."""
        return self.model / "test_results.json"

    @property
    def ranks(self) -> Path:
        """The table of all test triples, best-ranked first."""
        return self.root / "evaluation" / "ranks.tsv"

    @property
    def best(self) -> Path:
        """The triples to explain, as ids."""
        return self.root / "evaluation" / "best.tsv"

    @cached_property
    def explanations(self) -> list[Path]:
        """One JSON file for each triple to explain, 1.json for the best-ranked."""
        return [self.root / "explanations" / f"{number}.json" for number in range(1, self.setting("num_explained") + 1)]

    @property
    def watched_explanations(self) -> list[Path]:
        """Those whose absence Snakemake notices: of very many, which one job writes, the first and the last."""
        ends = [self.explanations[0], self.explanations[-1]]
        return self.explanations if len(self.explanations) <= MOST_EXPLAINED_ALONE else ends

    @property
    def pages(self) -> list[Path]:
        """The report of each triple, if each has a job of its own."""
        return [path.with_suffix(".html") for path in self.explanations]

    @property
    def report(self) -> Path:
        """The page to open first: all reports, or links to them."""
        return self.root / "report.html"

    def log(self, step: str) -> Path:
        """The log of a step."""
        return self.root / "logs" / f"{step}.log"

    # Settings of the steps, for Snakemake to notice a change

    @property
    def prepare_settings(self) -> list[str]:
        """The flags of prepare_data.py."""
        flags = flags_of(self.config, self._prepare_flags)
        if not self.is_kgx:  # style only names the directory
            flags = flags_of({**self.config, "style": None}, self._prepare_flags)
        return flags

    @property
    def train_settings(self) -> list[str]:
        """The flags of train_pytorch.py."""
        return flags_of(self.config, self._train_flags)

    @property
    def explain_settings(self) -> list[str]:
        """The flags of tracin_pytorch.py."""
        return flags_of(self.config, self._explain_flags)

    # Steps

    def prepare(self, *, log: Path, threads: int) -> None:
        """Write the files of the graph."""
        command = script("prepare_data.py", *self.prepare_settings, "--output-dir", self.data["train"].parent)
        execute(command, log=log, threads=threads)

    def train(self, *, log: Path, threads: int) -> None:
        """Train, from the last checkpoint if a run with the same data and settings was interrupted.

        Raises StepFailedError if there are fewer test triples than are to be explained afterwards.
        """
        self.require_enough_test_triples()
        files = ("train", "valid", "test", "entity_to_id", "relation_to_id")
        inputs = [self.data[name] for name in files]
        command = script("train_pytorch.py", *self._file_flags(*files), *self.train_settings)
        command += ["--output-dir", str(self.model), "--resume-from-checkpoint", "auto"]
        execute(command, log=log, threads=threads, first=lambda: self.forget_another_run(inputs))

    def require_enough_test_triples(self) -> None:
        """Raise StepFailedError if `num_explained` is more than there are distinct test triples."""
        with self.data["test"].open("rb") as lines:
            number = len(set(lines))
        if number < self.setting("num_explained"):
            raise StepFailedError(
                f"{self.data['test']}: has {number} test triples, fewer than num_explained, "
                f"{self.setting('num_explained')}; lower it in config.yaml, or raise test_fraction"
            )

    def forget_another_run(self, inputs: Sequence[Path]) -> None:
        """Delete checkpoints and models that come from other data or settings, or are past the last epoch.

        Snakemake knows nothing of them, or it would delete them before it runs a killed job again. `run.json` says
        what they were trained with.
        """
        bound = {name for name, each in self._train_flags.items() if not settings.may_change_in_a_run(each)}
        run = {
            "settings": {name: value for name, value in self.config.items() if name in bound},
            "inputs": {path.name: digest_of_file(path) for path in inputs},
        }
        note = self.model / "run.json"
        checkpoints = list((self.model / "checkpoints").glob(EPOCH_CHECKPOINTS))
        epochs = [epoch_in(path) for path in checkpoints]
        last_epoch = self.config.get("num_epochs") or TrainingConfig.num_epochs
        same_run = note.is_file() and json.loads(note.read_text(encoding="utf-8")) == run
        if same_run and max(epochs, default=0) <= last_epoch:
            return
        for path in (*checkpoints, self.model / "best_model.pt", self.model / "final_model.pt"):
            path.unlink(missing_ok=True)
        write_json(note, run)

    def evaluate(self, *, log: Path, threads: int) -> None:
        """Rank all test triples and choose those to explain."""
        command = [sys.executable, "-m", "conve_tracin.evaluation", "--model-path", str(self.model / "best_model.pt")]
        command += self._file_flags(*self.data) + self._device_flags
        command += ["--output", str(self.ranks), "--best-output", str(self.best)]
        command += ["--best", str(self.setting("num_explained"))]
        execute(command, log=log, threads=threads)

    def explain(self, number: int, *, log: Path, threads: int) -> None:
        """Explain the triple on line `number`, counted from 1, of the best-ranked."""
        triple = self.best.read_text(encoding="utf-8").splitlines()[number - 1].split("\t")
        command = [*self._tracin_command, "--test-triple", *triple, "--output", str(self.explanations[number - 1])]
        execute([*command, "--report", str(self.pages[number - 1])], log=log, threads=threads)

    def explain_all(self, *, log: Path, threads: int) -> None:
        """Explain all chosen triples in one pass: the same JSON files as by `explain`, and one report."""
        triples = [line.split("\t") for line in self.best.read_text(encoding="utf-8").splitlines()]
        directory = self.explanations[0].parent
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory, prefix=".") as temporary:
            command = [*self._tracin_command, "--test-triples", str(self.best), "--output-dir", temporary]
            execute([*command, "--report", str(self.report)], log=log, threads=threads)
            for triple, output in zip(triples, self.explanations, strict=True):
                (Path(temporary) / f"triple_{'_'.join(triple)}.json").replace(output)

    def index(self) -> None:
        """Write the page that leads to the reports of `explain`."""
        write_index_page(self.report, self.ranks, self.pages)

    def info(self) -> str:
        """Describe the configuration: directories, source, training, and what one batch needs."""
        source = next(name for name in SOURCES if self.setting(name))
        batch_size = int(self.setting("batch_size") or TrainingConfig.batch_size)
        lines = [
            f"Everything goes to   {self.root}",
            f"Graph                {source}: {', '.join(self.sources) or self.setting('dataset')}",
            f"prepare_data.py      {' '.join(self.prepare_settings)}",
            f"train_pytorch.py     {' '.join(self.train_settings)}",
            f"tracin_pytorch.py    {' '.join(self.explain_settings)}",
            f"Explained            the {self.setting('num_explained')} best-ranked test triples, "
            + ("all in one job" if self.setting("explain_together") else "one job each"),
            f"Mixed precision      {'on' if self.setting('use_mixed_precision') else 'off'}",
        ]
        if self.data["entity_to_id"].is_file():
            with self.data["entity_to_id"].open("rb") as file:
                num_entities = sum(1 for _ in file)
            megabytes = batch_size * num_entities * 4 / 1e6
            lines.append(
                f"One batch            {batch_size:,} queries x {num_entities:,} entities: "
                f"{megabytes:,.1f} MB of scores in float32, no label matrix"
            )
        done = [
            str(path) for path in (self.test_results, self.ranks, *self.explanations, self.report) if path.is_file()
        ]
        lines.append(f"Done so far          {', '.join(done) or 'nothing'}")
        return "\n".join(lines)

    # What the steps share

    @property
    def _tracin_command(self) -> list[str]:
        names = ["train", "entity_to_id", "relation_to_id", "node_name_dict", *(["edge_map"] if self.is_kgx else [])]
        command = script("tracin_pytorch.py", "--model-path", self.model / "best_model.pt", *self._file_flags(*names))
        known = ["--known", str(self.data["valid"]), str(self.data["test"])]
        return [*command, "--ids", *known, *self.explain_settings, *self._device_flags]

    @property
    def _device_flags(self) -> list[str]:
        return ["--device", "cpu"] if self.setting("no_gpu") else []

    def _file_flags(self, *names: str) -> list[str]:
        return [word for name in names for word in (flag_of(name), str(self.data[name]))]

    @cached_property
    def _prepare_flags(self) -> dict[str, Field]:
        return settings.with_flags(settings.PrepareSettings)

    @cached_property
    def _train_flags(self) -> dict[str, Field]:
        return settings.with_flags(*settings.TRAINING_SETTINGS)

    @cached_property
    def _explain_flags(self) -> dict[str, Field]:
        # What both know, such as the batch size and the learning rate, is a setting of training; so is the device.
        known = {*self._train_flags, "device"}
        return {name: each for name, each in settings.native_settings().items() if name not in known}


def flags_of(config: Mapping[str, Any], known: Mapping[str, Field]) -> list[str]:
    """Write the settings that are `known` as words of a command line, in the order of the script's --help.

    Raises InputError for a switch that is neither true nor false.
    """
    words = []
    for name, declared in known.items():
        value = config.get(name)
        if value is None or value == "":
            continue
        if settings.is_switch(declared):
            if not isinstance(value, bool):
                raise InputError(f"config.yaml: {name} is {value!r}; give true or false")
            words += [flag_of(name)] if value else []
        else:
            words += [flag_of(name), *map(str, value if isinstance(value, list) else [value])]
    return words


def script(name: str, *words: str | Path) -> list[str]:
    """Return the command that runs one of the scripts with this Python."""
    return [sys.executable, str(SCRIPTS / name), *map(str, words)]


def execute(command: Sequence[str], *, log: Path, threads: int, first: Callable[[], None] = lambda: None) -> None:
    """Run a command with its output in `log`, after `first`.

    A step that a killed Snakemake has left behind still runs, and writes what this one would. So each step holds a
    lock beside its log, and waits for it.

    Raises StepFailedError with the log's last line if the command fails.
    """
    variables = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    search_path = os.pathsep.join(filter(None, [str(SCRIPTS), os.environ.get("PYTHONPATH")]))
    log.parent.mkdir(parents=True, exist_ok=True)
    # Snakemake replaces logs, so the lock is a file of its own.
    with log.with_name(f".{log.stem}.lock").open("ab") as lock:
        wait_for_lock(lock, of=log)
        first()
        with log.open("wb") as file:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **variables, "PYTHONPATH": search_path},
                pass_fds=[lock.fileno()] if os.name == "posix" else (),  # the lock lives as long as the command
                check=False,
            )
    if done.returncode != 0:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["it said nothing"]
        raise StepFailedError(f"{lines[-1]} (exit code {done.returncode}; the whole log is {log})")


def wait_for_lock(lock: BinaryIO, *, of: Path) -> None:
    """Lock an open file, once no other process has it; if there are no locks, do nothing."""
    if not lock_file(lock, wait=False):
        print(f"{of}: this step still runs, left behind by an earlier run; waiting until it ends", file=sys.stderr)
        lock_file(lock, wait=True)

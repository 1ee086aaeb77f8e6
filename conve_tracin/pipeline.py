"""What the pipeline runs: a configuration to files and command lines. Snakefile_pytorch_conve decides when.

Commands are lists of words and never pass through a shell, so that directories may be called anything.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import Field, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from conve_tracin import settings
from conve_tracin.checkpoint.epochs import EPOCH_CHECKPOINTS, epoch_in
from conve_tracin.commands import ADVISED_EXPLAINING, advised_training
from conve_tracin.data.prepare import ENTITY_FILE, NAME_FILE, RELATION_FILE
from conve_tracin.data.splits import SPLITS
from conve_tracin.data.text import suggestion
from conve_tracin.data.triples import COLUMN_NAMES
from conve_tracin.errors import InputError
from conve_tracin.files import digest_of_file, lock_file, write_json, write_together
from conve_tracin.report.index_page import write_index_page
from conve_tracin.settings import TrainingConfig, flag_of
from conve_tracin.training.forecast import duration_in_words, forecast_training, sizes_of

SCRIPTS = Path(__file__).resolve().parent.parent

# What the pipeline is told besides the flags of its scripts.
PIPELINE_DEFAULTS: dict[str, Any] = {
    "base": "results", "style": "keepall", "num_explained": 5, "explain_together": False, "explain_threads": 1,
    "queries": None, "num_candidates": 10, "candidate_category": None,
    "verify": False, "verify_remove": 10, "verify_seeds": 3, "verify_together": True,
}  # fmt: skip
SWITCHES = ("explain_together", "verify", "verify_together")
COUNTS = ("num_explained", "explain_threads", "num_candidates", "verify_remove", "verify_seeds")
SHIPPED = "config.yaml"
# Of a run that nobody watches, the checkpoints need not fill the disk.
FEWER_CHECKPOINTS = {"checkpoint_frequency": 10}
# Settings of training that fit each other: advice holds for all of a group or, if one is given, for none.
SET_TOGETHER = (
    {"embedding_dim", "embedding_height", "embedding_width", "kernel_height", "kernel_width"},
    {"training_approach", "loss", "query_weights"},
)  # fmt: skip
SOURCES = ("dataset", "triples", "nodes")
# With more, a job for each would take days to start, and minutes to be listed by Snakemake.
MOST_EXPLAINED_ALONE = 1000


class StepFailedError(Exception):
    """A step ended with an error; the message points to its log."""


def names_a_graph(config: Mapping[str, Any]) -> bool:
    """Whether a configuration says where the graph comes from; it then stands alone, without that of UMLS."""
    return any(config.get(name) for name in SOURCES)


def origins_of(files: Mapping[str, Mapping[str, Any]], command_line: Collection[str]) -> dict[str, str]:
    """Say where each setting was given: the name of a file, by the contents of `files`, or --config."""
    origins = {name: file for file, content in files.items() for name in content}
    return origins | dict.fromkeys(command_line, "--config")


@dataclass(frozen=True)
class Pipeline:
    """One configuration and all that follows from it.

    `config` is the content of config.yaml, changed by --configfile and --config, or of the user's own file;
    `origins` says where each setting was given, for messages.

    Raises InputError for settings that nothing knows, and for a graph from no source or from two.
    """

    config: Mapping[str, Any]
    origins: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Snakemake's --config reads true and false as words.
        words = {"true": True, "false": False}
        read = {name: words.get(str(value).lower(), value) for name, value in self.config.items()}
        object.__setattr__(self, "config", read)
        self._require_known_settings()
        self._require_one_graph()
        for name in SWITCHES:
            if not isinstance(self.setting(name), bool):
                raise InputError(f"{self.where(name)}: {name} is {self.setting(name)!r}; give true or false")
        for name in COUNTS:
            if not isinstance(self.setting(name), int) or self.setting(name) < 1:
                raise InputError(f"{self.where(name)}: {name} is {self.setting(name)!r}; give a whole number from 1")
        if self.setting("num_explained") > MOST_EXPLAINED_ALONE and not self.setting("explain_together"):
            raise InputError(
                f"{self.where('num_explained')}: num_explained is {self.setting('num_explained')} with a job for each; "
                f"explain at most {MOST_EXPLAINED_ALONE}, or all in one job with explain_together: true"
            )

    def _require_known_settings(self) -> None:
        known = {*PIPELINE_DEFAULTS, *self._prepare_flags, *self._train_flags, *self._explain_flags}
        for name in self.config:
            if name not in known:
                raise InputError(f"{self.where(name)}: no setting is called {name!r}; "
                                 + suggestion(name, known, otherwise="see docs/pipeline.md"))  # fmt: skip

    def _require_one_graph(self) -> None:
        sources = [name for name in SOURCES if self.setting(name)]
        if len(sources) != 1:
            found = " and ".join(sources) or "none of them"
            where = self.where(*sources)
            raise InputError(f"{where}: give one of dataset, triples and nodes (with edges), and leave the others "
                             f"empty; {found} is given")  # fmt: skip
        if self.is_kgx and not self.setting("edges"):
            raise InputError(f"{self.where('nodes')}: nodes goes with edges; give both files of the KGX graph")
        if self.setting("candidate_category") and not self.is_kgx:
            raise InputError(
                f"{self.where('candidate_category')}: candidate_category needs a KGX graph, whose nodes have categories"
            )
        for path in (str(self.root), *self.sources):
            if "{" in path or "}" in path:
                raise InputError(
                    f"{self.where(*sources, 'base')}: {path}: braces are wildcards to Snakemake; choose a path without"
                )

    def require_sources(self) -> None:
        """Raise InputError if a file of the graph is missing, unless the graph is prepared."""
        if all(path.is_file() for path in self.data.values()):
            return
        for name in ("triples", "nodes", "edges"):
            given = self.setting(name) or []
            for path in given if isinstance(given, list) else [given]:
                if not Path(path).exists():
                    raise InputError(f"{self.where(name)}: {name}: {path}: no such file; check the path")

    def where(self, *names: str) -> str:
        """Return where settings were given: the user's own file, --config, or else the shipped one."""
        given = dict.fromkeys(self.origins[name] for name in names if name in self.origins)
        return " and ".join(given) or SHIPPED

    def setting(self, name: str) -> Any:
        """Return a setting, or its default; an empty one counts as missing."""
        value = self.config.get(name)
        return PIPELINE_DEFAULTS.get(name) if value is None or value == "" else value

    @property
    def given(self) -> dict[str, Any]:
        """The settings that are not empty."""
        return {name: value for name, value in self.config.items() if value is not None and value != ""}

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
            names |= {"edge_map": "edge_map.json", "evidence": "evidence.tsv.gz"}
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

    @property
    def candidates(self) -> list[Path]:
        """The table of the answers to `queries`; none if nothing is asked."""
        return [self.root / "predictions" / "candidates.tsv"] if self.setting("queries") else []

    @property
    def query_files(self) -> list[str]:
        """The user's file of queries, if they are not written out in the configuration."""
        queries = self.setting("queries")
        return [queries] if isinstance(queries, str) else []

    @property
    def verification(self) -> list[Path]:
        """What training again without the strongest proponents showed, and its page; none if it is off."""
        names = ("verification.json", "verification.html") if self.setting("verify") else ()
        return [self.root / "verification" / name for name in names]

    @property
    def results(self) -> list[Path]:
        """What a whole run makes."""
        made = [self.test_results, self.ranks, *self.candidates, *self.watched_explanations]
        return [*made, *self.verification, self.report]

    def log(self, step: str) -> Path:
        """The log of a step."""
        return self.root / "logs" / f"{step}.log"

    # Settings of the steps, for Snakemake to notice a change

    @property
    def prepare_settings(self) -> list[str]:
        """The flags of prepare_data.py."""
        # Of other graphs, style only names the directory.
        return self._flags_of(self.config if self.is_kgx else {**self.config, "style": None}, self._prepare_flags)

    @property
    def train_settings(self) -> list[str]:
        """The flags of train_pytorch.py that are given; `training` adds what is advised for the graph."""
        return self._flags_of(self.config, self._train_flags)

    @property
    def explain_settings(self) -> list[str]:
        """The flags of tracin_pytorch.py."""
        return self._flags_of(ADVISED_EXPLAINING | self.given, self._explain_flags)

    @property
    def predict_settings(self) -> list[str]:
        """The flags of predict_pytorch.py."""
        category = self.setting("candidate_category")
        chosen = ["--candidate-category", str(category), "--nodes", str(self.setting("nodes"))] if category else []
        return ["--top-k", str(self.setting("num_candidates")), *chosen]

    @property
    def verify_settings(self) -> list[str]:
        """The flags of verify_tracin.py."""
        words = ["--remove", str(self.setting("verify_remove")), "--seeds", str(self.setting("verify_seeds"))]
        return [*words, "--together"] if self.setting("verify_together") else words

    @cached_property
    def training(self) -> dict[str, Any]:
        """The settings of training: those that are given, and what is advised for the size of the prepared graph."""
        given = {name: value for name, value in self.given.items() if name in self._train_flags}
        if not self.data["train"].is_file():
            return given
        num_triples, num_entities = (count_lines(self.data[name]) for name in ("train", "entity_to_id"))
        advised = advised_training(num_triples, num_entities=num_entities)
        settled = {name for group in SET_TOGETHER if group & given.keys() for name in group}
        return FEWER_CHECKPOINTS | {name: value for name, value in advised.items() if name not in settled} | given

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
        command = script("train_pytorch.py", *self._file_flags(*files))
        command += self._flags_of(self.training, self._train_flags)
        command += ["--output-dir", str(self.model), "--resume-from-checkpoint", "auto"]
        execute(command, log=log, threads=threads, first=lambda: self.forget_another_run(inputs))

    def require_enough_test_triples(self) -> None:
        """Raise StepFailedError if `num_explained` is more than there are distinct test triples."""
        with self.data["test"].open("rb") as lines:
            number = len(set(lines))
        if number < self.setting("num_explained"):
            raise StepFailedError(
                f"{self.data['test']}: has {number} test triples, fewer than num_explained, "
                f"{self.setting('num_explained')}; lower it in {self.where('num_explained')}, or raise test_fraction"
            )

    def forget_another_run(self, inputs: Sequence[Path]) -> None:
        """Delete checkpoints and models that come from other data or settings, or are past the last epoch.

        Snakemake knows nothing of them, or it would delete them before it runs a killed job again. `run.json` says
        what they were trained with.
        """
        bound = {name for name, each in self._train_flags.items() if not settings.may_change_in_a_run(each)}
        run = {
            "settings": {name: value for name, value in self.training.items() if name in bound},
            "inputs": {path.name: digest_of_file(path) for path in inputs},
        }
        note = self.model / "run.json"
        checkpoints = list((self.model / "checkpoints").glob(EPOCH_CHECKPOINTS))
        epochs = [epoch_in(path) for path in checkpoints]
        last_epoch = self.training.get("num_epochs", TrainingConfig.num_epochs)
        same_run = note.is_file() and json.loads(note.read_text(encoding="utf-8")) == run
        if same_run and max(epochs, default=0) <= last_epoch:
            return
        for path in (*checkpoints, self.model / "best_model.pt", self.model / "final_model.pt"):
            path.unlink(missing_ok=True)
        write_json(note, run)

    def evaluate(self, *, log: Path, threads: int) -> None:
        """Rank all test triples and choose those to explain."""
        command = script("rank_pytorch.py", "--model-path", self.best_model, *self._file_flags(*SPLITS, *self._names))
        command += self._device_flags
        command += ["--output", str(self.ranks), "--best-output", str(self.best)]
        command += ["--best", str(self.setting("num_explained"))]
        execute(command, log=log, threads=threads)

    def predict(self, *, log: Path, threads: int) -> None:
        """Ask the model for candidates."""
        (output,) = self.candidates
        asked = self.query_files or [str(output.with_name("queries.tsv"))]
        known = ["--known", *(str(self.data[split]) for split in SPLITS)]
        command = script("predict_pytorch.py", "--model-path", self.best_model, *self._file_flags(*self._names))
        command += ["--queries", *asked, *known, *self.predict_settings, *self._device_flags, "--output", str(output)]
        execute(command, log=log, threads=threads, first=self.write_queries)

    def write_queries(self) -> None:
        """Write the queries that stand in the configuration, a line each."""
        queries = self.setting("queries")
        if isinstance(queries, str):
            return
        for query in queries:
            if not isinstance(query, list) or len(query) != len(COLUMN_NAMES):
                raise StepFailedError(
                    f'{self.where("queries")}: the query {query!r} is not [head, relation, tail]; write "?" for what '
                    "is asked"
                )
        lines = ("\t".join(map(str, query)) + "\n" for query in queries)
        write_together({self.candidates[0].with_name("queries.tsv"): lines})

    def verify(self, *, log: Path, threads: int) -> None:
        """Train again without the strongest proponents of the explained predictions."""
        output, report = self.verification
        command = script("verify_tracin.py", "--model-path", self.best_model, *self._file_flags("train", *self._names))
        command += ["--influences", *map(str, self.explanations), *self._known, *self.verify_settings]
        command += [*self._device_flags, "--output", str(output), "--report", str(report)]
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
        """Describe the configuration: directories, source, command lines, and what training will take."""
        source = next(name for name in SOURCES if self.setting(name))
        asked = self.setting("queries")
        lines = [
            f"Settings from        {', '.join(dict.fromkeys(self.origins.values())) or SHIPPED}",
            f"Everything goes to   {self.root}",
            f"SplitGraph                {source}: {', '.join(self.sources) or self.setting('dataset')}",
            f"prepare_data.py      {' '.join(self.prepare_settings)}",
            f"train_pytorch.py     {' '.join(self._flags_of(self.training, self._train_flags))}",
            f"predict_pytorch.py   {f'asks {asked}' if asked else 'is not run: queries is empty'}",
            f"tracin_pytorch.py    {' '.join(self.explain_settings)}",
            "verify_tracin.py     "
            + (" ".join(self.verify_settings) if self.setting("verify") else "is not run: verify is false"),
            f"Explained            the {self.setting('num_explained')} best-ranked test triples, "
            + ("all in one job" if self.setting("explain_together") else "one job each"),
            "Mixed precision      "
            + ("on; no effect on a processor without bfloat16" if self.setting("use_mixed_precision") else "off"),
            *self._what_training_takes(),
        ]
        done = [str(path) for path in (*self.results[:2], *self.explanations, self.report) if path.is_file()]
        lines.append(f"Done so far          {', '.join(done) or 'nothing'}")
        return "\n".join(lines)

    def _what_training_takes(self) -> list[str]:
        """Say how large the graph is, and how long and with how much memory it trains, once it is prepared."""
        if not self.data["train"].is_file():
            return [
                "Time and memory      known once the graph is prepared (the target `prepare`); settings of training "
                "that are not given are then chosen for its size"
            ]
        sizes = sizes_of(self.data, self.training)
        expected = forecast_training(sizes, self.training)
        epochs = self.training.get("num_epochs", TrainingConfig.num_epochs)
        batch_size = int(self.training.get("batch_size", TrainingConfig.batch_size))
        again = 3 * self.setting("verify_seeds") * (
            1 if self.setting("verify_together") else self.setting("num_explained")
        )  # fmt: skip
        lines = [
            f"Size                 {sizes.entities:,} entities, {sizes.relations:,} relations, {sizes.triples:,} "
            "training triples",
            f"Training takes       about {duration_in_words(expected.seconds)} of one core in float32 "
            f"({epochs} epochs of {sizes.visits:,} queries), and about {expected.gigabytes:.1f} GB of memory",
            f"One batch            {batch_size:,} queries x {sizes.entities:,} entities: "
            f"{batch_size * sizes.entities * 4 / 1e6:,.1f} MB of scores in float32, no label matrix",
        ]
        if self.setting("verify"):
            lines.append(f"Verifying takes      up to {again} trainings: {duration_in_words(again * expected.seconds)}")
        return lines

    # What the steps share

    @property
    def best_model(self) -> Path:
        """The model that ranks, answers and is explained."""
        return self.model / "best_model.pt"

    @property
    def _names(self) -> list[str]:
        return [name for name in self.data if name not in (*SPLITS, "evidence")]

    @property
    def _known(self) -> list[str]:
        return ["--known", str(self.data["valid"]), str(self.data["test"])]

    @property
    def _tracin_command(self) -> list[str]:
        command = script("tracin_pytorch.py", "--model-path", self.best_model, *self._file_flags("train", *self._names))
        if self.is_kgx:
            command += [*self._file_flags("evidence"), "--nodes", str(self.setting("nodes"))]
        return [*command, "--ids", *self._known, *self.explain_settings, *self._device_flags]

    @property
    def _device_flags(self) -> list[str]:
        return ["--device", "cpu"] if self.setting("no_gpu") else []

    def _flags_of(self, config: Mapping[str, Any], known: Mapping[str, Field]) -> list[str]:
        try:
            return flags_of(config, known)
        except InputError as error:
            raise InputError(f"{self.where(str(error).partition(' ')[0])}: {error}") from None

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
                raise InputError(f"{name} is {value!r}; give true or false")
            words += [flag_of(name)] if value else []
        else:
            words += [flag_of(name), *map(str, value if isinstance(value, list) else [value])]
    return words


def count_lines(path: Path) -> int:
    """Count the lines of a file; none if there is no such file."""
    if not path.is_file():
        return 0
    with path.open("rb") as lines:
        return sum(1 for _ in lines)


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

"""The settings of both influence scripts."""

from collections.abc import Sequence
from dataclasses import Field, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from conve_tracin.errors import InputError
from conve_tracin.settings.fields import (
    Condition,
    file_to_write,
    hops,
    needs,
    never,
    non_negative_int,
    pick,
    positive_float,
    positive_int,
    reason_without_effect,
    require_valid,
    setting,
    unless,
    unless_given,
    with_flags,
)
from conve_tracin.settings.training import machine_setting

MODES = ("test", "single", "self")

# Which end of a test triple is taken for the answer.
TAIL, HEAD = SIDES = ("tail", "head")

DEFAULT_LEARNING_RATE = 0.001

DEFAULT_BATCH_SIZE = 256

TRACIN = "tracin"

GAUSS_NEWTON = "gauss-newton"
# λ over the mean eigenvalue of a curvature where --damping is 1, for models trained with softmax cross-entropy.
SOFTMAX_DAMPING = 10.0

# Each method's module; see `influence.method.Method`.
METHODS = {
    TRACIN: "conve_tracin.influence.tracin",
    GAUSS_NEWTON: "conve_tracin.influence.gauss_newton",
}

ACCEPTED = "no effect: accepted for command lines that have it; a message says why"

COMPUTED_ONCE = never("each test gradient is needed, and computed, once")


def _on_fast_engine(otherwise: str) -> Condition:
    return Condition(lambda given: given.use_optimized_tracin or given.method == GAUSS_NEWTON, otherwise)


def _needs_prediction(why: str) -> Condition:
    return unless(mode="self", why=why)


def _needs_tracin(why: str) -> Condition:
    return unless(method=GAUSS_NEWTON, why=f": {why}")


_file = partial(setting, group="files")
_choice = partial(setting, group="what to analyse")
_influence = partial(setting, group="influence")
_engine = partial(setting, group="engine")


@dataclass(frozen=True, kw_only=True)
class TracInOptions:
    """The options of `run_tracin_analysis`; `run_tracin.py --help` describes each.

    `model_path` takes one path or several. `entity_to_id` and `relation_to_id` may be left out for the directory
    of a PyKEEN pipeline, `test` in mode "self" or for `test_triples` or `test_triple`
    (ids or labels of head, relation and tail; `given_as` "ids" or "labels" says which). `csv_output` is a path, or
    True for one beside `output`. None stands for "not said" if the default depends on other things.

    Raises InputError if options contradict each other.
    """

    model_path: Sequence[Path | str] | Path | str
    train: Path | str
    output: Path | str
    test: Path | str | None = _file(
        None, help="test triples; needed except in --mode self", kind=Path,
        matters=(_needs_prediction(": training triples are ranked"),),
    )  # fmt: skip
    test_triples: Path | str | None = _file(
        None, kind=Path, metavar="FILE",
        help="instead of --test: triples of ids, labels or names, one a line, or a table of rank_pytorch.py or "
        "predict_pytorch.py",
        matters=(needs(mode="test"),),
    )  # fmt: skip
    test_triple: Sequence[str] | None = None
    given_as: str | None = _file(
        None, help="how test triples, queries and candidates are given", choices=("ids", "labels"),
        flags={
            "--ids": "read test triples, queries and candidates as ids",
            "--labels": "read them as labels or names, even if they are integers",
        },
        called="--ids or --labels", matters=(unless_given("test", ": files of triples hold labels"),),
    )  # fmt: skip
    entity_to_id: Path | str | None = None
    relation_to_id: Path | str | None = None
    skip_unknown: bool = _file(
        False, help="drop triples with unknown labels instead of stopping",
        matters=(Condition(
            lambda given: given.test_triples is None or given.mode != "test",
            " on --test-triples: each of them was asked for by name",
        ),),
    )  # fmt: skip
    edge_map: Path | str | None = None
    node_name_dict: Path | str | None = None
    nodes: Path | str | None = _file(
        None, help="KGX nodes of the graph: ranks within a category, colours and words by category", kind=Path,
        metavar="FILE", matters=(_needs_prediction(": training triples are ranked"),),
    )  # fmt: skip
    trust_pickle: bool = _file(
        False, help="read PyKEEN's trained_model.pkl; unpickling runs code, so only from an origin that you trust",
    )  # fmt: skip
    embedding_height: int | None = _file(
        None, help="rows of an embedding's image, if PyKEEN's file does not tell them", kind=positive_int
    )
    embedding_width: int | None = _file(None, help="columns of that image", kind=positive_int)
    csv_output: Path | str | bool | None = None
    output_per_triple: bool = _file(
        False, help="write one JSON file for each test triple",
        matters=(_needs_prediction(": there is one ranking"),),
    )  # fmt: skip
    report: Path | str | None = _file(
        None, help="also write a self-contained page: evidence, paths, relations, and how it was computed",
        kind=file_to_write, metavar="FILE.html", matters=(_needs_prediction(": it shows predictions"),),
    )  # fmt: skip
    known: Sequence[Path | str] = _file(
        (), help="further true triples, such as valid and test: the prediction's rank passes over their tails, too",
        kind=Path, many=True, metavar="FILE", matters=(_needs_prediction(", which ranks no prediction"),),
    )  # fmt: skip
    evidence: Path | str | None = _file(
        None, help="sources and publications behind the training triples, to show them: prepare_data.py's "
        "evidence.tsv.gz", kind=Path, metavar="FILE", matters=(_needs_prediction(": it shows predictions"),),
    )  # fmt: skip
    reasons: Path | str | None = _file(
        None, help="known reasons of predictions, to mark and to rank them: JSON lines, plain or .gz", kind=Path,
        metavar="FILE", matters=(_needs_prediction(", which explains no prediction"),),
    )  # fmt: skip
    trapi: Path | str | None = _file(
        None, help="also write the predictions as a TRAPI 1.5 response, with what supports them",
        kind=file_to_write, metavar="FILE.json", matters=(_needs_prediction(": it shows predictions"),),
    )  # fmt: skip

    mode: str = _choice(
        "test", choices=MODES,
        help="test: the test triples; single: those of --test-indices; self: rank training triples by self-influence",
    )  # fmt: skip
    test_indices: Sequence[int] | None = _choice(
        None, help="places in the test file, counted from 0, for --mode single", kind=non_negative_int, many=True,
        metavar="I", matters=(needs(mode="single"),),
    )  # fmt: skip
    max_test_triples: int | None = _choice(
        None, help="analyse the first N only", kind=positive_int, metavar="N", matters=(needs(mode="test"),)
    )

    method: str = _influence(
        TRACIN, choices=METHODS,
        help="tracin: the documented definition; gauss-newton: what agrees best with retraining",
    )  # fmt: skip
    damping: float = _influence(
        1.0, kind=positive_float,
        help="of gauss-newton: what is added to a curvature, in units of its mean eigenvalue, or of "
        f"{SOFTMAX_DAMPING:,.0f} of them after softmax cross-entropy; more of it makes influences smaller",
        matters=(needs(method=GAUSS_NEWTON),),
    )  # fmt: skip
    learning_rate: float | None = _influence(
        None, kind=positive_float, metavar="η",
        help=f"factor of every score (default: {DEFAULT_LEARNING_RATE}; with several checkpoints the one stored in "
        "each)",
        matters=(_needs_tracin("influences are differences of scores"),),
    )  # fmt: skip
    training_loss: bool = _influence(
        False,
        help="ℓ of tracin is the objective that the model was trained with, not the loss of the triple's own score",
        matters=(_needs_tracin("it estimates what the training's objective does to a score"),),
    )  # fmt: skip
    predicted_side: str = _influence(
        TAIL, choices=SIDES,
        help="which end of a test triple is explained; the head needs a model that was trained with inverse triples",
        matters=(_needs_prediction(", which explains no prediction"),),
    )  # fmt: skip
    top_k: int = _influence(10, help="how many influences to list", kind=positive_int)
    paths: int = _influence(
        20, help="how many paths of the training graph from head to tail to list; 0 leaves them out",
        kind=non_negative_int, matters=(_needs_prediction(": it shows predictions"),),
    )  # fmt: skip
    max_hops: int = _influence(3, help="triples in a path at most, 1 to 3", kind=hops, matters=(unless(paths=0),))
    use_last_layers_only: bool = _influence(
        False, help="track only the last tensors before the scoring layer; it agrees with retraining less",
        matters=(_needs_tracin("it follows embedding rows"),),
    )  # fmt: skip
    num_last_layers: int = _influence(
        2, help="how many tensors that is", kind=positive_int,
        matters=(Condition(
            lambda given: given.use_last_layers_only and not given.last_layer_names,
            " without --use-last-layers-only, or beside --last-layer-names",
        ),),
    )  # fmt: skip

    batch_size: int = machine_setting(
        DEFAULT_BATCH_SIZE, kind=positive_int,
        help="(head, relation) pairs in a batch; the default is replaced by what fills a cache, or a GPU",
        matters=(_on_fast_engine(" on the reference loop, which takes one triple at a time"),),
    )  # fmt: skip
    device: str = machine_setting("auto", help="cpu, cuda, cuda:1, …; auto takes a GPU if there is one")
    use_mixed_precision: bool = machine_setting(
        False, help="matrix products in bfloat16",
        matters=(
            _needs_tracin("it touches too few triples to gain"),
            _on_fast_engine(" on the reference loop, which defines the exact scores"),
            unless(training_loss=True),
        ),
    )  # fmt: skip
    use_tf32: bool = machine_setting(False, help="products on a GPU with TensorFloat-32's 10 bits")
    use_gradient_checkpointing: bool = machine_setting(
        False, help=ACCEPTED, matters=never("no activations of a batch are kept for a backward pass")
    )
    enable_multi_gpu: bool = machine_setting(False, help="one process for each visible GPU")
    no_index: bool = machine_setting(False, help="read large files of triples whole, and leave no index beside them")
    index_dir: Path | str | None = machine_setting(
        None, help="where the index goes, if not beside the training triples", kind=Path, metavar="DIR",
        matters=(unless(no_index=True),),
    )  # fmt: skip

    last_layer_names: Sequence[str] | None = _engine(
        None, help="track exactly these parameters", many=True, metavar="NAME",
        matters=(_needs_tracin("it follows embedding rows"),),
    )  # fmt: skip
    use_optimized_tracin: bool = _engine(
        False, help="the same scores by forward-mode passes, in far less time than the reference's backward loop"
    )
    use_vectorized_gradients: bool | None = _engine(
        None, help=ACCEPTED, off="--disable-vectorized-gradients",
        matters=(
            _on_fast_engine(": the reference loop is asked for"),
            *never("forward-mode passes need no training gradients"),
        ),
    )  # fmt: skip
    cache_test_gradients: bool | None = _engine(
        None, help=ACCEPTED, off="--disable-test-gradient-caching", matters=COMPUTED_ONCE
    )
    use_torch_compile: bool = _engine(
        False, help=ACCEPTED, matters=never("compiled passes measured no faster on a CPU")
    )
    disable_memory_cleanup: bool = _engine(False, help=ACCEPTED, matters=never("there is no cleanup to leave out"))

    def __post_init__(self) -> None:
        if isinstance(self.model_path, str | Path):
            object.__setattr__(self, "model_path", (self.model_path,))
        require_valid(self)
        missing = missing_for_mode(self)
        if missing is not None:
            raise InputError(missing)
        if self.predicted_side == HEAD and self.training_loss:
            raise InputError("--training-loss is of both sides at once; leave out --predicted-side head")
        if (self.entity_to_id is None) != (self.relation_to_id is None):
            raise InputError("--entity-to-id and --relation-to-id go together; give both")

    @property
    def inputs(self) -> tuple[Path | str | None, ...]:
        """All that is read, files and directories; None for what was not given."""
        given = (self.train, self.test, self.test_triples, self.entity_to_id, self.relation_to_id)
        names = (self.edge_map, self.node_name_dict, self.nodes)
        return (*self.model_path, *given, *self.known, *names, self.evidence, self.reasons)

    @property
    def rounds_to_bfloat16(self) -> bool:
        """Whether influences are asked for in bfloat16, of an engine that can."""
        (declared,) = pick(TracInOptions, "use_mixed_precision").values()
        return self.use_mixed_precision and reason_without_effect(declared, self) is None

    @property
    def output_directory(self) -> Path | None:
        """The directory of --output-per-triple; None if the results go into one file."""
        if not self.output_per_triple or self.mode == "self":
            return None
        output = Path(self.output)
        return output.with_suffix("") if output.suffix == ".json" and not output.is_dir() else output

    @property
    def csv_path(self) -> Path | None:
        """Where the table goes, or None if none is wanted."""
        if self.csv_output is None or self.csv_output is False:
            return None
        if self.csv_output is not True:
            return Path(self.csv_output)
        if self.output_directory is not None:
            return self.output_directory / "tracin.csv"
        return Path(self.output).with_suffix(".csv")


def missing_for_mode(given: Any) -> str | None:
    """Say what the mode lacks, of `TracInOptions` or of parsed arguments; None if it lacks nothing."""
    if given.mode == "single" and not given.test_indices:
        return "--mode single analyses the triples that --test-indices names; give one or more"
    if given.mode == "single" and given.test is None:
        return "--mode single needs the test triples; give --test FILE"
    sources = (given.test, given.test_triples, getattr(given, "test_triple", None))
    if given.mode == "test" and sum(source is not None for source in sources) != 1:
        return "--mode test needs the test triples; give either --test FILE or --test-triples FILE"
    return None


@dataclass(frozen=True, kw_only=True)
class AcceptedOptions:
    """What both influence scripts take besides `TracInOptions`."""

    auto_batch_size: bool = machine_setting(
        False,
        help="always on here: a batch that does not fit into memory is halved, which changes no result",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class NativeEngine:
    """What `tracin_pytorch.py` has instead of the group "engine" of `TracInOptions`."""

    engine: str = _engine(
        "forward", help="how the same scores are computed: fast, or by the definition's backward loop",
        choices=("forward", "reference"), called="--engine reference",
        matters=(unless(method=GAUSS_NEWTON, why=", which has one engine"),),
    )  # fmt: skip
    no_cache_test_gradients: bool = _engine(False, help="keep no gradients of test triples", matters=COMPUTED_ONCE)

    @classmethod
    def of(cls, options: TracInOptions) -> "NativeEngine":
        """Return the flags that give these options."""
        engine = "forward" if options.use_optimized_tracin else "reference"
        return cls(engine=engine, no_cache_test_gradients=options.cache_test_gradients is False)

    def as_options(self) -> dict[str, bool | None]:
        """Return the members of `TracInOptions` that these flags stand for."""
        return {
            "use_optimized_tracin": self.engine == "forward",
            "cache_test_gradients": False if self.no_cache_test_gradients else None,
        }


# The groups of `TracInOptions` that both influence scripts have.
SHARED_GROUPS = ("influence", "machine")


def native_settings() -> dict[str, Field]:
    """Return the settings of tracin_pytorch.py besides files."""
    return with_flags(TracInOptions, AcceptedOptions, groups=SHARED_GROUPS) | with_flags(NativeEngine)

"""All settings, as dataclasses whose fields say everything about a setting once.

A field made by `setting` is a flag of the command line with its help and check, a key of config.yaml, the check of
what Python gives, the line that says when the setting has no effect, and the rule for resuming. Neither torch nor
pykeen is imported here.
"""

import argparse
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from conve_tracin.errors import InputError

# ---------------------------------------------------------------------------------------------------------------
# What a field says

# The largest of torch's whole numbers, sizes and seeds among them.
LARGEST_INT = 2**63 - 1


@dataclass(frozen=True)
class Number:
    """A range of numbers: the type of a flag, and the check of what Python gives."""

    type: type
    wanted: str
    accepts: Callable[[Any], bool]
    otherwise: str

    def __call__(self, text: str) -> int | float:
        """Parse a word of the command line; raise argparse.ArgumentTypeError for what is no such number."""
        try:
            value = self.type(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {self.wanted}") from None
        if not self.accepts(value):
            raise argparse.ArgumentTypeError(f"{text} is {self.otherwise}")
        if self.type is int and value > LARGEST_INT:
            raise argparse.ArgumentTypeError(f"{text} is above {LARGEST_INT}")
        return value

    def holds(self, value: Any) -> bool:
        """Whether a value from Python is such a number; a whole number will do for a float."""
        return isinstance(value, int | self.type) and not isinstance(value, bool) and self.accepts(value)


def _number(kind: type, wanted: str, accepts: Callable[[Any], bool], otherwise: str = "") -> Number:
    return Number(kind, wanted, accepts, otherwise or f"not {wanted}")


positive_int = _number(int, "a whole number of at least 1", lambda value: value >= 1, "below 1")
non_negative_int = _number(int, "a whole number of at least 0", lambda value: value >= 0, "below 0")
positive_float = _number(float, "a finite number above 0", lambda value: 0 < value < math.inf)
non_negative_float = _number(float, "a finite number of at least 0", lambda value: 0 <= value < math.inf)
fraction = _number(float, "at least 0 and below 1", lambda value: 0 <= value < 1)
hops = _number(int, "1, 2 or 3", lambda value: 1 <= value <= 3)


def file_to_write(text: str) -> Path:
    """Take the path of a file that may be there or not; a directory is none."""
    if Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a directory; name a file")
    return Path(text)


# What another value means for a run that goes on from a checkpoint.
REFUSED = "refused"
NEW_RUN = "training goes on and says so; the pipeline starts a new run"
SAID = "training goes on and says so, in the pipeline too"
FREE = "training goes on"


@dataclass(frozen=True)
class Condition:
    """When a setting has an effect, and what stands behind "has no effect" when it has none."""

    holds: Callable[[Any], bool]
    otherwise: str


def needs(*, why: str = "", **values: str) -> Condition:
    """Say that other settings must have these values."""
    flags = " and ".join(f"{flag_of(name)} {value}" for name, value in values.items())
    return Condition(
        lambda given: all(getattr(given, name) == value for name, value in values.items()), f" without {flags}{why}"
    )


def unless(*, why: str = "", **values: Any) -> Condition:
    """Say that another setting must not have this value."""
    ((name, value),) = values.items()
    flag = flag_of(name) if value is True else f"{flag_of(name)} {value}"
    return Condition(lambda given: getattr(given, name) != value, f" with {flag}{why}")


def unless_given(name: str, why: str) -> Condition:
    """Say that another setting must be left out."""
    return Condition(lambda given: getattr(given, name) is None, f" with {flag_of(name)}{why}")


def never(why: str) -> tuple[Condition]:
    """Say that a setting is accepted only."""
    return (Condition(lambda _: False, f": {why}"),)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a field says besides its name, type and default."""

    help: str
    group: str | None = None  # of --help; without one there is no flag
    kind: Callable[[str], Any] | None = None  # turns a word of the command line into the value; text by default
    choices: Collection[str] = ()
    metavar: str | None = None
    many: bool = False  # the flag takes several values
    off: str | None = None  # the flag that says False, if None stands for "not said"
    flags: Mapping[str, str] = field(default_factory=dict)  # {"--value": help}, if each choice has a flag of its own
    called: str | None = None  # what lines about effects call it, if not by its flag
    matters: tuple[Condition, ...] = ()
    on_resume: str = NEW_RUN  # one of REFUSED, NEW_RUN, SAID and FREE
    before: Any = None  # what checkpoints without the setting were trained with, if not with the default


def setting(default: Any = MISSING, **said: Any) -> Any:
    """Declare a field of a settings dataclass; `said` are the members of `Setting`."""
    return field(default=default, metadata={"setting": Setting(**said)})


def about(declared: Field) -> Setting | None:
    """Return what a field says; None for a file that the scripts declare."""
    return declared.metadata.get("setting")


def flag_of(name: str) -> str:
    """Return the flag of a setting: batch_size is --batch-size."""
    return "--" + name.replace("_", "-")


def is_switch(declared: Field) -> bool:
    """Whether the flag takes no value."""
    return declared.default is False


def with_flags(*settings_types: type, groups: Sequence[str] | None = None) -> dict[str, Field]:
    """Return the fields that have flags, in the order of --help, from some groups or all."""
    found = {each.name: each for kind in settings_types for each in fields(kind) if about(each) and about(each).group}
    return {name: each for name, each in found.items() if groups is None or about(each).group in groups}


def pick(settings_type: type, *names: str) -> dict[str, Field]:
    """Return some of the fields."""
    return {name: settings_type.__dataclass_fields__[name] for name in names}


def require_valid(settings: Any) -> None:
    """Raise InputError for a value that the command line would not take."""
    for each in fields(settings):
        said, value = about(each), getattr(settings, each.name)
        if said is None or (value is None and each.default is None):
            continue
        if said.choices and value not in said.choices:
            raise InputError(f"{each.name} {value!r}: choose one of {', '.join(said.choices)}")
        values = value if said.many else [value]
        if isinstance(said.kind, Number) and not all(map(said.kind.holds, values)):
            raise InputError(f"{each.name} is {value!r:.40}; it must be {said.kind.wanted}")
        if is_switch(each) and not isinstance(value, bool):
            raise InputError(f"{each.name} is {value!r:.40}; it must be true or false")


def reason_without_effect(declared: Field, settings: Any) -> str | None:
    """Return the words behind "has no effect", or None for a setting that has one."""
    return next((when.otherwise for when in about(declared).matters if not when.holds(settings)), None)


def settings_without_effect(given: Any, settings: Any = None) -> Iterator[str]:
    """Say which of the given settings change nothing, one line each; `settings` are all, if not the same."""
    for each in fields(given):
        value = getattr(given, each.name)
        if about(each) is None or value == each.default or value == []:
            continue
        reason = reason_without_effect(each, given if settings is None else settings)
        if reason is not None:
            flag = about(each).off if about(each).off and value is False else flag_of(each.name)
            yield f"{about(each).called or flag} has no effect{reason}"


@dataclass(frozen=True)
class Change:
    """A setting that is not what a checkpoint was trained with."""

    name: str
    before: Any
    now: Any
    is_refused: bool


def changes_on_resuming(stored: Mapping[str, Any], settings: Any) -> Iterator[Change]:
    """List the settings that differ from those in a checkpoint, without those that are free to change."""
    for each in fields(settings):
        said, now = about(each), getattr(settings, each.name)
        before = stored_setting(stored, each)
        if before != now and said.on_resume != FREE:
            yield Change(each.name, before, now, is_refused=said.on_resume == REFUSED)


def stored_setting(stored: Mapping[str, Any], declared: Field) -> Any:
    """Return what a checkpoint was trained with, whether it tells or has what was usual before the setting was."""
    before = about(declared).before
    return stored.get(declared.name, declared.default if before is None else before)


def stored_settings(settings_type: type, stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return all settings of a kind that a checkpoint was trained with."""
    return {each.name: stored_setting(stored, each) for each in fields(settings_type)}


def may_change_in_a_run(declared: Field) -> bool:
    """Whether a run of the pipeline may go on from its checkpoints with another value."""
    return about(declared).on_resume in (SAID, FREE)


# ---------------------------------------------------------------------------------------------------------------
# Training

_size = partial(setting, group="model", kind=positive_int, on_resume=REFUSED)
_dropout = partial(setting, group="model", kind=fraction)
_training = partial(setting, group="training")
_count = partial(_training, kind=positive_int)
_machine = partial(setting, group="machine")


@dataclass(frozen=True, kw_only=True)
class ConvEConfig:
    """The sizes of a ConvE model. `num_relations` counts the rows of the relation table, inverses included.

    Raises InputError if the sizes contradict each other.
    """

    num_entities: int = setting(help="rows of the entity table", kind=positive_int, on_resume=REFUSED)
    num_relations: int = setting(help="rows of the relation table", kind=positive_int, on_resume=REFUSED)
    embedding_dim: int = _size(200, help="height × width")
    embedding_height: int = _size(10, help="rows of an embedding's image")
    embedding_width: int = _size(20, help="columns of that image")
    output_channels: int = _size(32, help="feature maps")
    kernel_height: int = _size(3, help="rows of the convolution kernel")
    kernel_width: int = _size(3, help="columns of the kernel")
    input_dropout: float = _dropout(0.2, help="dropout on the input image")
    feature_map_dropout: float = _dropout(0.2, help="dropout of whole feature maps")
    output_dropout: float = _dropout(0.3, help="dropout on the query vector")
    entity_bias: bool = _size(False, help="add a trained bias to each entity's scores", kind=None)

    def __post_init__(self) -> None:
        require_valid(self)
        if self.embedding_height * self.embedding_width != self.embedding_dim:
            raise InputError(
                f"embedding_height × embedding_width is {self.embedding_height} × {self.embedding_width} = "
                f"{self.embedding_height * self.embedding_width}, not embedding_dim {self.embedding_dim}; "
                "change one of the three"
            )
        if self.kernel_height > 2 * self.embedding_height or self.kernel_width > self.embedding_width:
            raise InputError(
                f"a {self.kernel_height} × {self.kernel_width} kernel does not fit on the "
                f"{2 * self.embedding_height} × {self.embedding_width} image of head and relation; "
                "choose a smaller kernel_height or kernel_width"
            )

    @property
    def feature_map_size(self) -> int:
        """Length of the flattened feature maps, the input of the linear layer."""
        height = 2 * self.embedding_height - self.kernel_height + 1
        width = self.embedding_width - self.kernel_width + 1
        return self.output_channels * height * width

    def as_dict(self) -> dict[str, int | float | bool]:
        """Return the plain values, as stored in a checkpoint's `model_config`."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How to train; `train_pytorch.py --help` describes each setting. Stored in every checkpoint, in this order.

    Raises InputError if the settings contradict each other.
    """

    num_epochs: int = _count(100, help="passes over the training set", on_resume=FREE)
    batch_size: int = _count(256, help="queries in a batch")
    learning_rate: float = _training(0.001, help="step size of the optimizer at the start", kind=positive_float)
    loss: str = _training(
        "bce", help="binary cross-entropy of each entity, or softmax cross-entropy over all", choices=("bce", "ce")
    )
    optimizer: str = _training("adam", help="how to take a step", choices=("adam", "adagrad"), on_resume=REFUSED)
    # w̄ ← αw̄ + (1 − α)w after each batch (after Polyak & Juditsky, 1992)
    weight_averaging: float = _training(
        0.0, kind=fraction,
        help="rank and keep a moving average of the weights, of which this share stays at each batch (0.999, say)",
    )  # fmt: skip
    # λ of λ/2·‖w‖², added to the gradient by the optimizer
    weight_decay: float = _training(0.0, help="factor of the L2 penalty", kind=non_negative_float)
    lr_scheduler: str = _training(
        "exponential", choices=("none", "exponential", "plateau"),
        help="multiply the rate by --lr-decay never, each epoch, or when the validation MRR no longer rises",
    )  # fmt: skip
    lr_decay: float = _training(
        1.0, help="factor of the learning rate, applied as --lr-scheduler says; 1 keeps it", kind=positive_float,
        matters=(unless(lr_scheduler="none"),),
    )  # fmt: skip
    lr_patience: int = _training(
        2, help="evaluations without a better validation MRR that --lr-scheduler plateau waits", kind=non_negative_int,
        matters=(needs(lr_scheduler="plateau"),),
    )  # fmt: skip
    label_smoothing: float = _training(0.1, help="share of each label spread out", kind=fraction)
    training_approach: str = _training(
        "1vsall", help="one target for each triple, or all tails of each (head, relation) at once",
        choices=("1vsall", "kvsall"),
    )  # fmt: skip
    # With weights by tails, the cross-entropy is that of 1vsall.
    query_weights: str = _training(
        "equal", help="of kvsall: each query counts alike, or as often as it has tails, as 1vsall has it",
        choices=("equal", "tails"),
        matters=(unless(training_approach="1vsall", why=": each of its queries has one tail"),),
    )  # fmt: skip
    # A batch with a query that counts for thousands is that query's alone, and Adam then takes smaller steps for all.
    tails_per_visit: int = _training(
        16, kind=non_negative_int, before=0,
        help="of --query-weights tails: visit a query once an epoch for every this many of its tails, at most 256 "
        "times, each time with all of them and a part of its weight; 0: once",
        matters=(needs(training_approach="kvsall", query_weights="tails"),),
    )  # fmt: skip
    entity_sample: int = _training(
        0, kind=non_negative_int,
        help="estimate the loss of a batch from its targets and this many entities drawn for it, instead of all; "
        "0: all",
    )  # fmt: skip
    # Relation r becomes row 2r, its inverse row 2r + 1.
    inverse_triples: bool = _training(
        False,
        help="also train on each triple the other way round, (t, inverse r, h): needed to rank heads",
        on_resume=REFUSED,
    )
    early_stopping_patience: int = _training(
        0, help="stop after this many evaluations without a better validation MRR; 0 never stops",
        kind=non_negative_int, on_resume=FREE,
    )  # fmt: skip
    eval_frequency: int = _count(1, help="epochs between evaluations", on_resume=FREE)
    checkpoint_frequency: int = _count(2, help="epochs between checkpoints", on_resume=FREE)
    random_seed: int = _training(42, help="seed of weights, order and dropout", kind=non_negative_int)
    use_mixed_precision: bool = _machine(
        False, help="compute in bfloat16, or in float16 on a GPU without it; no effect on a processor without it"
    )
    use_gradient_checkpointing: bool = _machine(False, help="less memory, more computing")
    use_torch_compile: bool = _machine(
        False, help="compile the loss and, on a GPU, the encoder (needs a C++ compiler)", on_resume=SAID
    )
    auto_batch_size: bool = _machine(False, help="halve batches that do not fit into memory", on_resume=SAID)

    def __post_init__(self) -> None:
        require_valid(self)
        if self.lr_scheduler == "plateau" and not self.lr_decay < 1:
            raise InputError(f"--lr-scheduler plateau with --lr-decay {self.lr_decay} changes nothing; give 0.5, say")


@dataclass(frozen=True, kw_only=True)
class TrainingMachine:
    """What `train_pytorch.py` takes besides `TrainingConfig`, and no checkpoint holds."""

    disable_memory_cleanup: bool = _machine(False, help="keep a GPU's cached memory after each epoch", on_resume=FREE)
    no_gpu: bool = _machine(False, help="train on the CPU even if there is a GPU", on_resume=FREE)
    num_workers: int = _machine(
        4, help="no effect: batches are cut from tensors in memory, so there is nothing to load beside training",
        kind=non_negative_int, on_resume=FREE, matters=never("batches are cut from tensors in memory"),
    )  # fmt: skip


TRAINING_SETTINGS = (ConvEConfig, TrainingConfig, TrainingMachine)

# ---------------------------------------------------------------------------------------------------------------
# Influence

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

    batch_size: int = _machine(
        DEFAULT_BATCH_SIZE, kind=positive_int,
        help="(head, relation) pairs in a batch; the default is replaced by what fills a cache, or a GPU",
        matters=(_on_fast_engine(" on the reference loop, which takes one triple at a time"),),
    )  # fmt: skip
    device: str = _machine("auto", help="cpu, cuda, cuda:1, …; auto takes a GPU if there is one")
    use_mixed_precision: bool = _machine(
        False, help="matrix products in bfloat16",
        matters=(
            _needs_tracin("it touches too few triples to gain"),
            _on_fast_engine(" on the reference loop, which defines the exact scores"),
            unless(training_loss=True),
        ),
    )  # fmt: skip
    use_tf32: bool = _machine(False, help="products on a GPU with TensorFloat-32's 10 bits")
    use_gradient_checkpointing: bool = _machine(
        False, help=ACCEPTED, matters=never("no activations of a batch are kept for a backward pass")
    )
    enable_multi_gpu: bool = _machine(False, help="one process for each visible GPU")
    no_index: bool = _machine(False, help="read large files of triples whole, and leave no index beside them")
    index_dir: Path | str | None = _machine(
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

    auto_batch_size: bool = _machine(
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


# ---------------------------------------------------------------------------------------------------------------
# Preparing data

# The keys of conve_tracin.data.kgx.styles.STYLES, whose module is slow to import.
STYLES = ("keepall", "original", "CD", "CGGD", "CCGGDD", "rCD", "CGGD_alltreat", "CCGGDD_alltreat", "clean_baseline")

SPLITTING = "splitting (of a KGX graph, one file, or a dataset without validation triples)"


@dataclass(frozen=True, kw_only=True)
class PrepareSettings:
    """What `prepare_data.py` takes besides the directory to write to; its --help describes each."""

    dataset: str | None = setting(
        None, help="a PyKEEN dataset; umls, nations and kinships need no network", metavar="NAME", group="graph"
    )
    triples: Sequence[Path] | None = setting(
        None, kind=Path, many=True, metavar="PATH", group="graph",
        help="head<TAB>relation<TAB>tail: one file to be split, TRAIN VALID TEST, or a directory that holds "
        "train.txt, valid.txt and test.txt",
    )  # fmt: skip
    nodes: Path | None = setting(
        None, help="nodes of a KGX graph (JSON lines or table), with --edges", kind=Path, metavar="FILE", group="graph"
    )
    triples_format: str | None = setting(
        None, choices=("labels", "openke"), group="graph",
        help="of --triples: openke holds ids as head, tail, relation below a count, with entity2id.txt and "
        "relation2id.txt beside it (default: labels that look neither like ids nor like a header)",
    )  # fmt: skip
    edges: Path | None = setting(
        None, help="edges of the graph that --nodes belongs to", kind=Path, metavar="FILE", group="KGX graph"
    )
    style: str = setting(
        "keepall", choices=STYLES, group="KGX graph",
        help="which edges are kept, by the categories of their ends (C chemical, G gene, D disease)",
    )  # fmt: skip
    test_predicate: str | None = setting(
        None, metavar="PREDICATE", group="KGX graph",
        help="hold out edges with this predicate only, such as biolink:treats; the fractions are shares of them",
    )  # fmt: skip
    negated: str = setting(
        "drop", choices=("drop", "keep"), group="KGX graph",
        help='edges that say that something is not so: drop and count them, or keep them as relations "not …"',
    )  # fmt: skip
    exclude_source: Sequence[str] | None = setting(
        None, many=True, metavar="INFORES", group="KGX graph",
        help="leave out edges that have one of these among their knowledge sources, such as infores:semmeddb",
    )  # fmt: skip
    knowledge_level: Sequence[str] | None = setting(
        None, many=True, metavar="LEVEL", group="KGX graph",
        help="keep edges of these knowledge levels only, such as knowledge_assertion; edges without one are "
        "not_provided",
    )  # fmt: skip
    agent_type: Sequence[str] | None = setting(
        None, many=True, metavar="TYPE", group="KGX graph",
        help="keep edges of these agent types only, such as manual_agent; edges without one are not_provided",
    )  # fmt: skip
    min_degree: int | None = setting(
        None, kind=positive_int, metavar="N", group="KGX graph",
        help="leave out entities with fewer edges, until none is left (default: 5 in the style clean_baseline, which "
        "keeps all edges of what is treated or treats; otherwise 1)",
    )  # fmt: skip
    drugmechdb: Path | None = setting(
        None, kind=Path, metavar="FILE", group="KGX graph",
        help="DrugMechDB's indication_paths.json: write the known reasons of the graph's treatments, reasons.jsonl.gz",
    )  # fmt: skip
    equivalents: Path | None = setting(
        None, kind=Path, metavar="FILE", group="KGX graph", matters=(unless(drugmechdb=None),),
        help="for --drugmechdb: lines of CURIEs, separated by tabs, that mean the same thing",
    )  # fmt: skip
    skip_malformed: bool = setting(False, help="leave out and count broken lines", group="KGX graph")
    skip_unknown: bool = setting(False, help="leave out and count edges with an end not in --nodes", group="KGX graph")
    valid_fraction: float = setting(0.1, help="share of the triples in valid.txt", kind=fraction, group=SPLITTING)
    test_fraction: float = setting(0.1, help="share of the triples in test.txt", kind=fraction, group=SPLITTING)
    hold_out_pairs: bool = setting(
        False, help="take all triples that join the two entities of a valid or test triple out of training",
        group=SPLITTING,
    )  # fmt: skip
    random_seed: int = setting(
        42, help="seed of the random choice of what is held out", kind=non_negative_int, group=SPLITTING
    )


# ---------------------------------------------------------------------------------------------------------------
# Candidates


@dataclass(frozen=True, kw_only=True)
class PredictionOptions:
    """The options of `predict`; `predict_pytorch.py --help` describes each.

    What is asked is either `queries`, a file, or `relation` with one of `head` and `tail`.

    Raises InputError where options contradict each other.
    """

    model_path: Path | str
    entity_to_id: Path | str
    relation_to_id: Path | str
    output: Path | str
    head: str | None = None
    relation: str | None = None
    tail: str | None = None
    given_as: str | None = None
    queries: Path | str | None = None
    top_k: int = 50
    known: Sequence[Path | str] = ()
    keep_known: bool = False
    candidates: Path | str | None = None
    candidate_category: str | None = None
    nodes: Path | str | None = None
    skip_unknown: bool = False
    edge_map: Path | str | None = None
    node_name_dict: Path | str | None = None
    trust_pickle: bool = False
    embedding_height: int | None = None
    embedding_width: int | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        ends = [end for end in (self.head, self.tail) if end is not None]
        if self.queries is not None and (ends or self.relation is not None):
            raise InputError("--queries FILE holds all that is asked; leave out --head, --relation and --tail")
        if self.queries is None and self.relation is None:
            raise InputError("nothing is asked; give --relation R with --head H or --tail T, or --queries FILE")
        if self.queries is None and len(ends) != 1:
            which = "both" if ends else "neither"
            raise InputError(
                f"{which} of --head and --tail given; give --head H for likely tails, or --tail T for likely heads"
            )
        if (self.candidate_category is None) != (self.nodes is None):
            raise InputError("--candidate-category needs --nodes FILE, which says what each node is; give both")
        if self.candidates is not None and self.nodes is not None:
            raise InputError("--candidates and --candidate-category exclude each other; give one")
        if Path(self.output).suffix not in (".tsv", ".json"):
            raise InputError(f"{self.output}: the ending says what is written; name a .tsv or a .json")

    @property
    def inputs(self) -> tuple[Path | str | None, ...]:
        """All that is read; None for what was not given."""
        names = (self.entity_to_id, self.relation_to_id, self.edge_map, self.node_name_dict)
        return (self.model_path, *names, self.queries, *self.known, self.candidates, self.nodes)


# ---------------------------------------------------------------------------------------------------------------
# Verification

_verification = partial(setting, group="what is trained")


@dataclass(frozen=True, kw_only=True)
class VerificationOptions:
    """The options of `verify`; `verify_tracin.py --help` describes each.

    `influences` are JSON files of the influence scripts, `known` files of further true triples.

    Raises InputError for a value that the command line would not take.
    """

    influences: Sequence[Path | str]
    model_path: Path | str
    train: Path | str
    entity_to_id: Path | str
    relation_to_id: Path | str
    output: Path | str
    report: Path | str | None = None
    known: Sequence[Path | str] = ()
    skip_unknown: bool = False
    edge_map: Path | str | None = None
    node_name_dict: Path | str | None = None

    remove: int = _verification(10, help="how many of the strongest proponents to leave out", kind=positive_int)
    seeds: int = _verification(3, help="trainings of each kind, each with a seed of its own", kind=positive_int)
    seed: int | None = _verification(
        None, help="the first of them, the others count up (default: one above the checkpoint's)", kind=non_negative_int
    )
    together: bool = _verification(
        False, help="leave out the proponents of all predictions at once, instead of training for each prediction"
    )
    num_epochs: int | None = _verification(
        None, kind=positive_int,
        help="of each training (default: until the checkpoint's own validation MRR was within 1%% of its best)",
    )  # fmt: skip
    num_workers: int | None = _machine(
        None, help="trainings at a time (default: one on a GPU, else one for each core)", kind=positive_int
    )
    device: str = _machine("auto", help="cpu, cuda, cuda:1, …; auto takes a GPU if there is one")

    def __post_init__(self) -> None:
        require_valid(self)

    @property
    def inputs(self) -> tuple[Path | str | None, ...]:
        """All that is read; None for what was not given."""
        mappings = (self.entity_to_id, self.relation_to_id, self.edge_map, self.node_name_dict)
        return (*self.influences, self.model_path, self.train, *self.known, *mappings)

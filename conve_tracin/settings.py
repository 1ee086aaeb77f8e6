"""All settings of training and influence: types, defaults and which of them have an effect."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from conve_tracin.errors import InputError

MODES = ("test", "single", "self")

# Which end of a test triple is taken for the answer.
TAIL, HEAD = SIDES = ("tail", "head")

DEFAULT_LEARNING_RATE = 0.001

DEFAULT_BATCH_SIZE = 256

TRACIN = "tracin"

GAUSS_NEWTON = "gauss-newton"

# Each method's module; see `influence.method.Method`.
METHODS = {
    TRACIN: "conve_tracin.influence.tracin",
    GAUSS_NEWTON: "conve_tracin.influence.gauss_newton_method",
}


@dataclass(frozen=True, kw_only=True)
class TracInOptions:
    """The options of `run_tracin_analysis`; `run_tracin.py --help` describes each.

    `model_path` takes one path or several. `entity_to_id` and `relation_to_id` may be left out for the directory
    of a PyKEEN pipeline, `test` in mode "self" or for `test_triples` or `test_triple`
    (ids or labels of head, relation and tail). `csv_output` is a path, or True for one beside
    `output`. None stands for "not said" where the default depends on other things.

    Raises InputError where options contradict each other.
    """

    model_path: Sequence[Path | str] | Path | str
    train: Path | str
    output: Path | str
    test: Path | str | None = None
    test_triples: Path | str | None = None
    test_triple: Sequence[str] | None = None
    entity_to_id: Path | str | None = None
    relation_to_id: Path | str | None = None
    skip_unknown: bool = False
    edge_map: Path | str | None = None
    node_name_dict: Path | str | None = None
    csv_output: Path | str | bool | None = None
    output_per_triple: bool = False
    report: Path | str | None = None
    known: Sequence[Path | str] = ()

    method: str = TRACIN
    damping: float = 1.0
    training_loss: bool = False
    mode: str = "test"
    test_indices: Sequence[int] | None = None
    max_test_triples: int | None = None
    top_k: int = 10
    predicted_side: str = TAIL
    learning_rate: float | None = None

    use_last_layers_only: bool = False
    num_last_layers: int = 2
    last_layer_names: Sequence[str] | None = None
    use_optimized_tracin: bool = False

    device: str = "auto"
    batch_size: int = DEFAULT_BATCH_SIZE
    use_mixed_precision: bool = False
    use_tf32: bool = False
    use_gradient_checkpointing: bool = False
    use_vectorized_gradients: bool | None = None
    cache_test_gradients: bool | None = None
    use_torch_compile: bool = False
    enable_multi_gpu: bool = False
    disable_memory_cleanup: bool = False

    trust_pickle: bool = False
    embedding_height: int | None = None
    embedding_width: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.model_path, str | Path):
            object.__setattr__(self, "model_path", (self.model_path,))
        if self.mode not in MODES:
            raise InputError(f"mode {self.mode!r}: choose one of {', '.join(MODES)}")
        if self.method not in METHODS:
            raise InputError(f"method {self.method!r}: choose one of {', '.join(METHODS)}")
        if self.predicted_side not in SIDES:
            raise InputError(f"predicted side {self.predicted_side!r}: choose one of {', '.join(SIDES)}")
        if self.predicted_side == HEAD and self.training_loss:
            raise InputError("--training-loss is of both sides at once; leave out --predicted-side head")
        if self.mode == "single" and not self.test_indices:
            raise InputError("--mode single analyses the triples that --test-indices names; give one or more")
        if self.mode == "single" and self.test is None:
            raise InputError("--mode single needs the test triples; give --test FILE")
        sources = (self.test, self.test_triples, self.test_triple)
        if self.mode == "test" and sum(source is not None for source in sources) != 1:
            raise InputError("--mode test needs the test triples; give either --test FILE or --test-triples FILE")
        if (self.entity_to_id is None) != (self.relation_to_id is None):
            raise InputError("--entity-to-id and --relation-to-id go together; give both")

    @property
    def inputs(self) -> tuple[Path | str | None, ...]:
        """All that is read, files and directories; None for what was not given."""
        given = (self.train, self.test, self.test_triples, self.entity_to_id, self.relation_to_id)
        return (*self.model_path, *given, *self.known, self.edge_map, self.node_name_dict)

    @property
    def rounds_to_bfloat16(self) -> bool:
        """Whether influences are asked for in bfloat16, of an engine that can."""
        return (
            self.use_mixed_precision and self.method == TRACIN and self.use_optimized_tracin and not self.training_loss
        )

    @property
    def output_directory(self) -> Path | None:
        """The directory of --output-per-triple; None where the results go into one file."""
        if not self.output_per_triple or self.mode == "self":
            return None
        output = Path(self.output)
        return output.with_suffix("") if output.suffix == ".json" and not output.is_dir() else output

    @property
    def csv_path(self) -> Path | None:
        """Where the table goes, or None where none is wanted."""
        if self.csv_output is None or self.csv_output is False:
            return None
        if self.csv_output is not True:
            return Path(self.csv_output)
        if self.output_directory is not None:
            return self.output_directory / "tracin.csv"
        return Path(self.output).with_suffix(".csv")


def shared_settings_without_effect(options: TracInOptions) -> Iterator[str]:
    """Say which flags that run_tracin.py and tracin_pytorch.py share change nothing in this run, one line each."""
    if options.method == GAUSS_NEWTON:
        yield from _without_effect_on_gauss_newton(options)
    else:
        yield from _without_effect_on_tracin(options)
    if options.num_last_layers != TracInOptions.num_last_layers and (
        not options.use_last_layers_only or options.last_layer_names
    ):
        yield "--num-last-layers has no effect without --use-last-layers-only, or beside --last-layer-names"
    if options.use_gradient_checkpointing:
        yield "--use-gradient-checkpointing has no effect: no activations of a batch are kept for a backward pass"
    if options.predicted_side != TAIL and options.mode == "self":
        yield "--predicted-side has no effect in --mode self, which explains no prediction"
    if options.known and options.mode == "self":
        yield "--known has no effect in --mode self, which ranks no prediction"


def _without_effect_on_tracin(options: TracInOptions) -> Iterator[str]:
    if options.damping != TracInOptions.damping:
        yield f"--damping has no effect without --method {GAUSS_NEWTON}"
    if options.training_loss and options.use_optimized_tracin and options.use_mixed_precision:
        yield "--use-mixed-precision has no effect with --training-loss"


def _without_effect_on_gauss_newton(options: TracInOptions) -> Iterator[str]:
    has_no_effect = f"has no effect with --method {GAUSS_NEWTON}"
    if options.learning_rate is not None:
        yield f"--learning-rate {has_no_effect}: influences are differences of scores"
    if options.use_last_layers_only or options.last_layer_names:
        yield f"--use-last-layers-only and --last-layer-names {has_no_effect}: it follows the three embedding rows"
    if options.use_mixed_precision:
        yield f"--use-mixed-precision {has_no_effect}: it touches too few triples to gain"
    if options.training_loss:
        yield f"--training-loss {has_no_effect}: it estimates what the training's objective does to a score"


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How to train. Stored in every checkpoint as `training_config`.

    Attributes:
        training_approach: "1vsall", one query with one target per triple, or "kvsall", one query with all its
            targets per distinct (head, relation).
        query_weights: the weights of kvsall's queries: "equal", or "tails", each its number of targets, so that
            cross-entropy is that of 1vsall.
        tails_per_visit: with weights by tails, an epoch comes to a query once for so many of its tails, each time for
            a part of its weight; 0 comes to each once. A batch with a query that counts for thousands is that query's
            alone, and Adam then takes smaller steps for all.
        inverse_triples: also train (t, inverse of r, h); relation r becomes row 2r, its inverse row 2r + 1.
        loss: "bce" or "ce", see `streamed_loss`.
        label_smoothing: ε of the loss.
        optimizer: "adam" or "adagrad".
        weight_averaging: the model that is ranked and kept has the moving average of the weights, w̄ ← αw̄ + (1 − α)w
            after each batch (after Polyak & Juditsky, 1992); 0 keeps the weights themselves.
        weight_decay: λ of the L2 penalty λ/2·‖w‖², added to the gradient by the optimizer.
        lr_scheduler: the learning rate is multiplied by `lr_decay` after each epoch ("exponential"), after more
            than `lr_patience` evaluations without a better validation MRR ("plateau"), or never ("none").
        early_stopping_patience: stop after this many evaluations without a better validation MRR; 0 never stops.
        eval_frequency, checkpoint_frequency: in epochs.
        auto_batch_size: halve the batch size, for the rest of the run, where the memory does not suffice.

    Raises InputError where the settings contradict each other.
    """

    num_epochs: int = 100
    batch_size: int = 256
    learning_rate: float = 0.001
    loss: str = "bce"
    optimizer: str = "adam"
    weight_averaging: float = 0.0
    weight_decay: float = 0.0
    lr_scheduler: str = "exponential"
    lr_decay: float = 1.0
    lr_patience: int = 2
    label_smoothing: float = 0.1
    training_approach: str = "1vsall"
    query_weights: str = "equal"
    tails_per_visit: int = 16
    inverse_triples: bool = False
    early_stopping_patience: int = 0
    eval_frequency: int = 1
    checkpoint_frequency: int = 2
    random_seed: int = 42
    use_mixed_precision: bool = False
    use_gradient_checkpointing: bool = False
    use_torch_compile: bool = False
    auto_batch_size: bool = False

    # What may differ between the run that wrote a checkpoint and the one that resumes it, without a remark.
    FREE_ON_RESUME = ("num_epochs", "early_stopping_patience", "eval_frequency", "checkpoint_frequency")
    # What checkpoints without a member were trained with, where that is not the default.
    BEFORE_IT_COULD_BE_CHOSEN = MappingProxyType({"tails_per_visit": 0})

    def __post_init__(self) -> None:
        if self.lr_scheduler == "plateau" and not self.lr_decay < 1:
            raise InputError(f"--lr-scheduler plateau with --lr-decay {self.lr_decay} changes nothing; give 0.5, say")


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

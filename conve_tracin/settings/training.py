"""The settings of train_pytorch.py: the model, its training, and the machine."""

from dataclasses import asdict, dataclass
from functools import partial

from conve_tracin.errors import InputError
from conve_tracin.settings.fields import (
    FREE,
    REFUSED,
    SAID,
    fraction,
    needs,
    never,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
    require_valid,
    setting,
    unless,
)

_size = partial(setting, group="model", kind=positive_int, on_resume=REFUSED)
_dropout = partial(setting, group="model", kind=fraction)
_training = partial(setting, group="training")
_count = partial(_training, kind=positive_int)
machine_setting = partial(setting, group="machine")


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
    use_mixed_precision: bool = machine_setting(
        False, help="compute in bfloat16, or in float16 on a GPU without it; no effect on a processor without it"
    )
    use_gradient_checkpointing: bool = machine_setting(False, help="less memory, more computing")
    use_torch_compile: bool = machine_setting(
        False, help="compile the loss and, on a GPU, the encoder (needs a C++ compiler)", on_resume=SAID
    )
    auto_batch_size: bool = machine_setting(False, help="halve batches that do not fit into memory", on_resume=SAID)

    def __post_init__(self) -> None:
        require_valid(self)
        if self.lr_scheduler == "plateau" and not self.lr_decay < 1:
            raise InputError(f"--lr-scheduler plateau with --lr-decay {self.lr_decay} changes nothing; give 0.5, say")


@dataclass(frozen=True, kw_only=True)
class TrainingMachine:
    """What `train_pytorch.py` takes besides `TrainingConfig`, and no checkpoint holds."""

    disable_memory_cleanup: bool = machine_setting(
        False, help="keep a GPU's cached memory after each epoch", on_resume=FREE
    )
    no_gpu: bool = machine_setting(False, help="train on the CPU even if there is a GPU", on_resume=FREE)
    num_workers: int = machine_setting(
        4, help="no effect: batches are cut from tensors in memory, so there is nothing to load beside training",
        kind=non_negative_int, on_resume=FREE, matters=never("batches are cut from tensors in memory"),
    )  # fmt: skip


TRAINING_SETTINGS = (ConvEConfig, TrainingConfig, TrainingMachine)

"""A setting is declared once: its field is the flag, the key of config.yaml, the check and the rule for resuming."""

import re
from dataclasses import dataclass, fields, replace

import pytest

import prepare_data
import run_tracin
import tracin_pytorch
import train_pytorch
from conve_tracin import settings
from conve_tracin.cli import make_parser
from conve_tracin.data.kgx import styles
from conve_tracin.errors import InputError
from conve_tracin.pipeline import Pipeline
from conve_tracin.settings import (
    ConvEConfig,
    NativeEngine,
    PrepareSettings,
    TracInOptions,
    TrainingConfig,
    TrainingMachine,
)  # fmt: skip

PARSERS = {module.__name__: module.build_parser for module in (train_pytorch, tracin_pytorch, run_tracin)}
OPTIONS = {"model_path": "m", "train": "t", "output": "o", "test": "x"}
# Keys of config.yaml that are no flags, but say what the pipeline does.
OF_THE_PIPELINE = {
    "base", "num_explained", "explain_together", "explain_threads", "queries", "num_candidates", "candidate_category",
    "verify", "verify_remove", "verify_seeds", "verify_together",
}  # fmt: skip


def groups_of(build_parser):
    """The titles and flags of --help, read from its text."""
    groups, title = {}, None
    for line in build_parser().format_help().splitlines():
        if re.fullmatch(r"\S.*:", line):
            title = line[:-1]
        elif title and (found := re.match(r"  (-.*?)(?:  |$)", line)):
            groups.setdefault(title, []).extend(re.findall(r"--[a-z0-9-]+", found[1]))
    return groups


@pytest.mark.parametrize("declared", [*settings.TRAINING_SETTINGS, NativeEngine, PrepareSettings, TracInOptions])
def test_every_setting_has_a_help_and_a_group(declared):
    files = {"model_path", "train", "output", "test_triple", "entity_to_id", "relation_to_id", "edge_map",
             "node_name_dict", "csv_output"}  # fmt: skip
    counted = {"num_entities", "num_relations"}
    for each in fields(declared):
        said = settings.about(each)
        assert (said is None) == (declared is TracInOptions and each.name in files), each.name
        if said is not None:
            assert said.help
            assert bool(said.group) == (each.name not in counted), each.name


@pytest.mark.parametrize("script", PARSERS)
def test_every_flag_is_in_a_named_group(script):
    groups = groups_of(PARSERS[script])
    assert groups.pop("options") == ["--help", "--debug"]
    assert {"files", "machine"} <= set(groups)
    assert len(groups["files"]) >= 9


def test_what_preparing_takes_is_what_its_script_takes():
    parsed = vars(prepare_data.build_parser().parse_args(["--dataset", "umls", "-o", "out"]))
    declared = {each.name: each.default for each in fields(PrepareSettings)}
    assert {name: parsed[name] for name in declared} == declared | {"dataset": "umls"}
    assert set(parsed) - set(declared) == {"output_dir", "debug"}
    assert tuple(styles.STYLES) == settings.STYLES


def test_the_keys_of_the_pipeline_are_the_flags_of_its_scripts():
    scripts = [PARSERS["train_pytorch"], PARSERS["tracin_pytorch"], prepare_data.build_parser]
    flags = {flag for script in scripts for found in groups_of(script).values() for flag in found}
    keys = {each.name for kind in (*settings.TRAINING_SETTINGS, TracInOptions, NativeEngine, PrepareSettings)
            for each in fields(kind)}  # fmt: skip
    taken = {key for key in keys if is_key(key)}
    assert {settings.flag_of(key) for key in taken} <= flags
    set_by_the_pipeline = {
        "help", "debug", "output-dir", "train", "valid", "test", "entity-to-id", "relation-to-id", "node-name-dict",
        "edge-map", "checkpoint-dir", "resume-from-checkpoint", "model-path", "test-triple", "test-triples", "output",
        "report", "known", "device", "ids", "labels",
    }  # fmt: skip
    shown_by_hand = {"evidence", "reasons", "trapi"}
    expected = {f"--{name}" for name in set_by_the_pipeline | shown_by_hand}
    assert flags - {settings.flag_of(key) for key in taken} == expected
    assert all(is_key(key) for key in OF_THE_PIPELINE)


def is_key(name):
    try:
        Pipeline({"dataset": "umls", name: None})
    except InputError as error:
        return "no setting is called" not in str(error)
    return True


@dataclass(frozen=True, kw_only=True)
class MoreTraining(TrainingConfig):
    """Training with a setting that nothing else knows."""

    number_of_moons: int = settings.setting(
        3, help="moons above the graph", kind=settings.positive_int, group="heaven", on_resume=settings.SAID,
        matters=(settings.needs(loss="ce"),),
    )  # fmt: skip
    is_night: bool = settings.setting(False, help="whether it is dark", group="heaven", on_resume=settings.REFUSED)


def test_a_setting_that_is_declared_is_a_flag_a_key_a_check_and_a_rule(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(settings, "TRAINING_SETTINGS", (ConvEConfig, MoreTraining, TrainingMachine))
    help_text = train_pytorch.build_parser().format_help()
    assert re.search(r"heaven:\n  --number-of-moons NUMBER_OF_MOONS\s+moons above the graph \(default: 3\)", help_text)
    with pytest.raises(SystemExit):
        train_pytorch.build_parser().parse_args(["--number-of-moons", "0"])
    assert "argument --number-of-moons: 0 is below 1" in capsys.readouterr().err
    with pytest.raises(InputError, match="number_of_moons is 0; it must be a whole number of at least 1"):
        MoreTraining(number_of_moons=0)

    configured = Pipeline({"base": str(tmp_path), "dataset": "umls", "number_of_moons": 2, "is_night": True})
    assert configured.train_settings == ["--number-of-moons", "2", "--is-night"]
    for change, stays in (({"number_of_moons": 9}, True), ({"is_night": False}, False)):
        configured.forget_another_run([])
        checkpoint = configured.model / "checkpoints" / "checkpoint_epoch_2.pt"
        checkpoint.parent.mkdir(exist_ok=True)
        checkpoint.touch()
        Pipeline({**configured.config, **change}).forget_another_run([])
        assert checkpoint.exists() is stays

    given = MoreTraining(number_of_moons=2, is_night=True)
    assert list(settings.settings_without_effect(given)) == ["--number-of-moons has no effect without --loss ce"]
    assert list(settings.settings_without_effect(replace(given, loss="ce"))) == []
    changes = list(settings.changes_on_resuming({"tails_per_visit": 16}, given))
    assert [(each.name, each.before, each.now, each.is_refused) for each in changes] == [
        ("number_of_moons", 3, 2, False), ("is_night", False, True, True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("batch_size", 0, "batch_size is 0; it must be a whole number of at least 1"),
        ("batch_size", 2.0, "batch_size is 2.0; it must be a whole number of at least 1"),
        ("num_epochs", True, "num_epochs is True; it must be"),
        ("learning_rate", float("nan"), "learning_rate is nan; it must be a finite number above 0"),
        ("weight_decay", float("inf"), "weight_decay is inf; it must be a finite number of at least 0"),
        ("label_smoothing", 1, "label_smoothing is 1; it must be at least 0 and below 1"),
        ("loss", "hinge", "loss 'hinge': choose one of bce, ce"),
        ("inverse_triples", "no", "inverse_triples is 'no'; it must be true or false"),
    ],
)
def test_training_settings_from_python_are_checked(name, value, message):
    with pytest.raises(InputError, match=re.escape(message)):
        TrainingConfig(**{name: value})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("top_k", 0, "top_k is 0; it must be a whole number of at least 1"),
        ("damping", -1.0, "damping is -1.0; it must be a finite number above 0"),
        ("test_indices", [0, -1], "test_indices is [0, -1]; it must be a whole number of at least 0"),
        ("mode", "all", "mode 'all': choose one of test, single, self"),
        ("method", "other", "method 'other': choose one of tracin, gauss-newton"),
    ],
)
def test_options_from_python_are_checked(name, value, message):
    with pytest.raises(InputError, match=re.escape(message)):
        TracInOptions(**OPTIONS | {name: value})
    assert TracInOptions(**OPTIONS, learning_rate=1, test_indices=[0]).learning_rate == 1


def test_a_group_is_made_once():
    parser = make_parser("does nothing")
    assert parser.group("machine") is parser.group("machine")
    assert parser.format_help().count("machine") == 0

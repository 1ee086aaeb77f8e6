"""The pipeline: settings to command lines, runs of Snakemake, and the commands of docs/pipeline.md."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from documents import commands_in
from pipeline_runs import ROOT, SHIPPED, SNAKEMAKE, TINY, needs_snakemake, snakemake, write_config

import predict_pytorch
import prepare_data
import tracin_pytorch
import train_pytorch
from conve_tracin import pipeline, settings
from conve_tracin.commands import advised_training
from conve_tracin.errors import InputError
from conve_tracin.pipeline import Pipeline, StepFailedError, execute, names_a_graph, origins_of

KGX = ROOT / "test" / "data" / "kgx"
FILES_OF_TRAINING = [
    word
    for name in ("train", "valid", "test", "entity-to-id", "relation-to-id", "output-dir")
    for word in (f"--{name}", "x")
]
DOCUMENT = (ROOT / "docs" / "pipeline.md").read_text(encoding="utf-8")
NOTHING_TO_DO = "Nothing to be done"
# Stand-ins for the programs of Slurm that its plugin calls: a job is over when it has been submitted.
SLURM = {
    "sbatch": 'echo "${@%%--wrap=*}" | tr "\\n" " " >> "$CALLS"; echo >> "$CALLS"\n'
    'for word; do case "$word" in --wrap=*) SLURM_JOB_ID=1 bash -c "${word#--wrap=}" >&2 || exit 1;; esac; done\n'
    'wc -l < "$CALLS"',
    "srun": 'while [[ $1 == -* ]]; do shift; done; exec "$@"',
    "sacct": 'for job in $(seq "$(wc -l < "$CALLS")"); do echo "$job|COMPLETED"; done',
    "squeue": "", "scancel": "", "scontrol": "", "sinfo": r"printf 'gpu*\ncpu\n'",
    "sacctmgr": "echo my_account", "sshare": "echo my_account",
}  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------
# Settings


def test_shipped_configuration():
    assert SHIPPED["batch_size"] == 512
    assert SHIPPED["use_mixed_precision"] is True
    shipped = Pipeline(SHIPPED)
    assert shipped.prepare_settings[:2] == ["--dataset", "umls"]
    assert shipped.log("train") == Path("results/umls/keepall/logs/train.log")


def test_settings_become_the_flags_that_the_scripts_read():
    settings = {
        **SHIPPED, "dataset": None, "nodes": "a b.jsonl", "edges": "c'd.jsonl", "style": "rCD", "skip_malformed": True,
        "num_epochs": 7, "learning_rate": 0.01, "training_approach": "1vsall", "inverse_triples": False, "top_k": 3,
        "test_predicate": "biolink:treats", "base": "x", "embedding_dim": "",
    }  # fmt: skip
    configured = Pipeline(settings)
    prepared = prepare_data.build_parser().parse_args([*configured.prepare_settings, "-o", "out"])
    assert (prepared.nodes, prepared.edges) == (Path("a b.jsonl"), Path("c'd.jsonl"))
    assert (prepared.style, prepared.test_predicate, prepared.skip_malformed) == ("rCD", "biolink:treats", True)
    files = [
        word
        for name in ("train", "valid", "test", "entity-to-id", "relation-to-id", "output-dir")
        for word in (f"--{name}", "x")
    ]
    trained = train_pytorch.build_parser().parse_args([*configured.train_settings, *files])
    assert (trained.num_epochs, trained.learning_rate, trained.batch_size) == (7, 0.01, 512)
    assert (trained.training_approach, trained.inverse_triples, trained.use_mixed_precision) == ("1vsall", False, True)
    assert trained.embedding_dim == 200
    required = [*files[:2], "--entity-to-id", "e", "--relation-to-id", "r", "--model-path", "m"]
    required += ["--test-triple", "0", "0", "0", "--output", "o"]
    explained = tracin_pytorch.build_parser().parse_args([*configured.explain_settings, *required])
    assert explained.top_k == 3
    assert explained.learning_rate is None


def test_style_of_other_graphs_names_the_directory_only():
    configured = Pipeline({"dataset": "umls", "style": "anything"})
    assert "--style" not in configured.prepare_settings
    assert configured.root == Path("results/anything")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_epoch": 3}, "no setting is called 'num_epoch'; did you mean 'num_epochs'"),
        ({"nodes": "n", "edges": "e"}, "dataset and nodes is given"),
        ({"dataset": None}, "none of them is given"),
        ({"base": "a{b}"}, "braces are wildcards"),
        ({"num_explained": 0}, "num_explained is 0; give a whole number from 1"),
        (
            {"num_explained": 1001},
            "num_explained is 1001 with a job for each; explain at most 1000, or all in one job with",
        ),
        ({"explain_threads": "many"}, "explain_threads is 'many'"),
        ({"explain_together": "no"}, "explain_together is 'no'; give true or false"),
        ({"dataset": None, "nodes": "n"}, "nodes goes with edges"),
        ({"candidate_category": "biolink:Drug"}, "candidate_category needs a KGX graph"),
        ({"verify": 1}, "verify is 1; give true or false"),
    ],
)
def test_settings_that_make_no_sense(change, message):
    with pytest.raises(InputError, match=re.escape(message)):
        Pipeline({**SHIPPED, **change})


def test_switches_are_true_or_false():
    with pytest.raises(InputError, match="inverse_triples is 'yes'; give true or false"):
        _ = Pipeline({**SHIPPED, "inverse_triples": "yes"}).train_settings


def test_true_and_false_of_the_command_line():
    configured = Pipeline({**SHIPPED, "inverse_triples": "false", "use_mixed_precision": "True"})
    assert "--inverse-triples" not in configured.train_settings
    assert "--use-mixed-precision" in configured.train_settings
    assert Pipeline({**SHIPPED, "explain_together": "false"}).setting("explain_together") is False


def test_sources_of_triples():
    assert Pipeline({"triples": ["a", "b", "c"]}).prepare_settings == ["--triples", "a", "b", "c"]
    assert Pipeline({"triples": "a"}).sources == ["a"]


def test_errors_name_where_a_setting_was_given():
    origins = origins_of({"mine.yaml": {"dataset": "umls", "num_explained": 0}}, ["verify"])
    with pytest.raises(InputError, match=r"^mine\.yaml: num_explained is 0"):
        Pipeline({"dataset": "umls", "num_explained": 0}, origins)
    with pytest.raises(InputError, match=r"^--config: verify is 'maybe'"):
        Pipeline({"dataset": "umls", "verify": "maybe"}, origins)
    with pytest.raises(InputError, match=r"^config\.yaml: inverse_triples is 'yes'; give true or false"):
        _ = Pipeline({"dataset": "umls", "inverse_triples": "yes"}, origins).train_settings


def test_a_configuration_that_names_a_graph_stands_alone():
    assert names_a_graph({"nodes": "n"})
    assert not names_a_graph({"num_epochs": 3, "nodes": None})


def test_settings_of_training_that_are_left_out_suit_the_graph(tmp_path):
    configured = Pipeline({"base": str(tmp_path), "dataset": "umls", "embedding_dim": 12, "embedding_height": 3,
                           "embedding_width": 4, "lr_decay": 0.5})  # fmt: skip
    configured.data["train"].parent.mkdir(parents=True)
    configured.data["train"].write_text("a\tr\tb\n" * 60_000)
    advised = advised_training(60_000, num_entities=2)
    assert configured.training["num_epochs"] == advised["num_epochs"]
    assert configured.training["loss"] == "ce"
    assert configured.training["lr_decay"] == 0.5
    assert (configured.training["embedding_height"], configured.training["embedding_width"]) == (3, 4)
    assert not {"kernel_height", "kernel_width"} & configured.training.keys()  # which would not fit such an image
    alone = {**configured.config, "loss": "bce"}
    assert not {"query_weights", "training_approach"} & Pipeline(alone).training.keys()


# ---------------------------------------------------------------------------------------------------------------
# Steps


@pytest.fixture
def commands_run(monkeypatch):
    """The command lines of steps, none of which runs."""
    found = []

    def note(command, *, first=lambda: None, **_):
        first()
        found.append(command)

    monkeypatch.setattr(pipeline, "execute", note)
    return found


def test_verifying_takes_the_explanations_and_the_files_of_training(tmp_path, commands_run):
    given = {"base": str(tmp_path), "dataset": "umls", "num_explained": 2, "no_gpu": True}
    assert Pipeline(given).verification == []
    configured = Pipeline({**given, "verify": True, "verify_remove": 7, "verify_together": False})
    configured.verify(log=tmp_path / "log", threads=1)
    (command,) = commands_run
    values = values_of(command)
    assert command[1].endswith("verify_tracin.py")
    assert values["--influences"] == [str(path) for path in configured.explanations]
    assert values["--model-path"] == [str(configured.model / "best_model.pt")]
    assert values["--train"] == [str(configured.data["train"])]
    assert values["--known"] == [str(configured.data["valid"]), str(configured.data["test"])]
    assert (values["--remove"], values["--seeds"]) == (["7"], ["3"])
    assert "--together" not in values
    assert [Path(values[flag][0]) for flag in ("--output", "--report")] == configured.verification
    assert configured.verification[0] in configured.results


def test_queries_are_written_out_or_a_file(tmp_path, commands_run):
    given = {"base": str(tmp_path), "nodes": "n.jsonl", "edges": "e.jsonl", "candidate_category": "biolink:Drug"}
    assert Pipeline(given).candidates == []
    configured = Pipeline({**given, "queries": [["aspirin", "treats", "?"], ["?", "treats", "pain"]]})
    configured.predict(log=tmp_path / "log", threads=1)
    written = Path(values_of(commands_run[0])["--queries"][0])
    assert written.read_text(encoding="utf-8") == "aspirin\ttreats\t?\n?\ttreats\tpain\n"
    named = Pipeline({**given, "queries": "mine.tsv", "num_candidates": 3})
    assert named.query_files == ["mine.tsv"]
    named.predict(log=tmp_path / "log", threads=1)
    words = ["x" if word == sys.executable else word for word in commands_run[1][2:]]
    asked = predict_pytorch.build_parser().parse_args(words)
    assert (asked.queries, asked.top_k, asked.nodes) == (Path("mine.tsv"), 3, Path("n.jsonl"))
    assert asked.known == [configured.data[split] for split in ("train", "valid", "test")]
    with pytest.raises(StepFailedError, match=r"is not \[head, relation, tail\]"):
        Pipeline({**given, "queries": [["aspirin", "treats"]]}).predict(log=tmp_path / "log", threads=1)


def values_of(command):
    """The words behind each flag of a command line."""
    values, flag = {}, None
    for word in command:
        if word.startswith("--"):
            flag = word
            values[flag] = []
        elif flag:
            values[flag].append(word)
    return values


def test_words_reach_the_command_as_they_are(tmp_path):
    words = ["a b", "'", '"', "$HOME", "`ls`", "ü;&|>x", "*", ""]
    log = tmp_path / "new dir" / "log"
    execute([sys.executable, "-c", "import sys; print(sys.argv[1:])", *words], log=log, threads=3)
    assert log.read_text(encoding="utf-8") == f"{words}\n"


def test_threads_and_failure_of_a_step(tmp_path):
    program = "import os, sys; print(os.environ['OMP_NUM_THREADS']); sys.exit('train.py: error: no luck')"
    with pytest.raises(StepFailedError, match=r"no luck \(exit code 1; the whole log is .*log\)"):
        execute([sys.executable, "-c", program], log=tmp_path / "log", threads=3)
    assert (tmp_path / "log").read_text().startswith("3\n")


def test_a_step_waits_for_the_one_that_a_killed_run_has_left(tmp_path, capfd):
    pytest.importorskip("fcntl")
    log, started, finished = tmp_path / "step.log", tmp_path / "started", tmp_path / "finished"
    program = (
        f"import pathlib, time; pathlib.Path({str(started)!r}).touch(); time.sleep(2);"
        f"pathlib.Path({str(finished)!r}).touch()"
    )
    run = f"execute([sys.executable, '-c', {program!r}], log=Path({str(log)!r}), threads=1)"
    imports = "import sys; from pathlib import Path; from conve_tracin.pipeline import execute"
    killed = subprocess.Popen([sys.executable, "-c", f"{imports}; {run}"], cwd=ROOT)
    while not started.exists():
        time.sleep(0.02)
    killed.kill()
    killed.wait()
    log.unlink()
    seen = []
    execute(
        [sys.executable, "-c", "print('new')"], log=log, threads=1, first=lambda: seen.append(finished.exists())
    )  # fmt: skip
    assert seen == [True]
    assert log.read_text() == "new\n"
    assert "left behind by an earlier run; waiting" in capfd.readouterr().err


@pytest.fixture
def trained(tmp_path):
    """A pipeline that has trained four epochs, and its input file."""
    source = tmp_path / "train.txt"
    source.write_text("a\tr\tb\n")
    configured = Pipeline({"base": str(tmp_path), "dataset": "umls", "num_epochs": 5, "batch_size": 8})
    configured.forget_another_run([source])
    (configured.model / "checkpoints").mkdir()
    for name in ("checkpoints/checkpoint_epoch_2.pt", "checkpoints/checkpoint_epoch_4.pt", "best_model.pt"):
        (configured.model / name).write_bytes(b"")
    return configured, source


@pytest.mark.parametrize(
    ("change", "stays"),
    [
        ({}, True),
        ({"num_epochs": 9}, True),
        ({"eval_frequency": 3, "top_k": 2}, True),
        ({"num_epochs": 3}, False),
        ({"batch_size": 9}, False),
        ({"learning_rate": 0.1}, False),
    ],
)
def test_checkpoints_of_the_same_run_only(trained, change, stays):
    configured, source = trained
    Pipeline({**configured.config, **change}).forget_another_run([source])
    assert len(list((configured.model / "checkpoints").iterdir())) == (2 if stays else 0)
    assert (configured.model / "best_model.pt").exists() == stays


def test_checkpoints_of_other_data_go(trained):
    configured, source = trained
    source.touch()
    configured.forget_another_run([source])
    assert (configured.model / "best_model.pt").exists()
    source.write_text("a\tr\tc\n")
    configured.forget_another_run([source])
    assert not (configured.model / "best_model.pt").exists()


# ---------------------------------------------------------------------------------------------------------------
# Runs


def kgx_config(directory, **settings):
    """Put the small KGX graph where its path needs quoting, and configure a tiny model."""
    inputs = directory / "in 'put' $HOME"
    shutil.copytree(KGX, inputs)
    graph = {
        "base": "out 'of' \"it\"", "style": "CGGD_alltreat", "dataset": None, "test_predicate": "biolink:treats",
        "nodes": str(inputs / "nodes.jsonl"), "edges": str(inputs / "edges.jsonl"),
        "queries": [["?", "Treats", "PAIN"]], "num_candidates": 2, "candidate_category": "biolink:SmallMolecule",
    }  # fmt: skip
    return write_config(directory, **{**TINY, **graph, **settings})


def planned(done):
    """The rules that a dry run would run, from its table of jobs."""
    table = re.search(r"^job +count\n-+ +-+\n(.*?)\ntotal", done.stdout + done.stderr, re.DOTALL | re.MULTILINE)
    return {line.split()[0] for line in table[1].splitlines()}


@pytest.fixture(scope="module")
def kgx_run(tmp_path_factory):
    """A finished run of the small KGX graph, all triples explained in one job."""
    directory = tmp_path_factory.mktemp("run with 'quotes' and blanks")
    config_file = kgx_config(directory, explain_together=True)
    done = snakemake(directory, config_file)
    assert done.returncode == 0, done.stderr
    return directory, config_file


@needs_snakemake
def test_small_kgx_graph_from_files_to_report(kgx_run):
    directory, _ = kgx_run
    root = directory / "out 'of' \"it\"" / "CGGD_alltreat"
    results = json.loads((root / "model" / "test_results.json").read_text())
    assert 0 < results["mean_reciprocal_rank"] <= 1
    ranks = [line.split("\t") for line in (root / "evaluation" / "ranks.tsv").read_text().splitlines()]
    assert [float(row[0]) for row in ranks[1:]] == sorted(float(row[0]) for row in ranks[1:])
    edges = [json.loads(line) for line in (KGX / "edges.jsonl").read_text().splitlines()]
    treats = {(edge["subject"], edge["object"]) for edge in edges if edge["predicate"] == "biolink:treats"}
    assert {(row[3], row[5]) for row in ranks[1:]} <= treats
    names = {
        json.loads(line)["id"]: json.loads(line)["name"] for line in (KGX / "nodes.jsonl").read_text().splitlines()
    }
    for number in (1, 2):
        explained = json.loads((root / "explanations" / f"{number}.json").read_text())
        assert explained["test_triple"]["head_label"] == names[ranks[number][3]]
        assert explained["test_triple"]["relation_label"] == "biolink:treats"
        assert len(explained["influences"]) == SHIPPED["top_k"]
        # What stands behind a triple, and the categories of the nodes, come from the graph.
        assert all(influence["evidence"] for influence in explained["influences"])
        assert "rank_in_category" in explained["prediction"]["tail_standing"]
    page = (root / "report.html").read_text(encoding="utf-8")
    assert names[ranks[1][3]] in page
    assert re.findall(r"<dt>Rank among all</dt><dd><b>([\d.,]+)", page) == [f"{float(row[0]):g}" for row in ranks[1:3]]
    assert {path.name for path in (root / "logs").glob("[!.]*")} == {
        "prepare.log", "train.log", "evaluate.log", "predict.log", "explain.log",
    }  # fmt: skip
    candidates = [line.split("\t") for line in (root / "predictions" / "candidates.tsv").read_text().splitlines()]
    asked = {row[0]: row[1:] for row in zip(*candidates, strict=True)}
    assert asked["tail_name"] == ("pain", "pain")
    assert asked["relation_name"] == ("biolink:treats", "biolink:treats")


@needs_snakemake
def test_second_run_has_nothing_to_do(kgx_run):
    done = snakemake(*kgx_run, "--dry-run")
    assert NOTHING_TO_DO in done.stdout + done.stderr


@needs_snakemake
@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "rules"),
    [
        ("top_k=3", {"explain_all", "all"}),
        ("num_epochs=3", {"train", "evaluate", "predict", "explain_all", "all"}),
        ("num_candidates=3", {"predict", "all"}),
        ("random_seed=1", {"prepare", "train", "evaluate", "predict", "explain_all", "all"}),
    ],
)
def test_changed_setting_runs_what_depends_on_it(kgx_run, change, rules):
    assert planned(snakemake(*kgx_run, "--dry-run", "--config", change)) == rules


@needs_snakemake
def test_plan_info_and_wrong_settings(tmp_path):
    config_file = write_config(tmp_path)
    done = snakemake(tmp_path, config_file, "info")
    assert "train_pytorch.py     --num-epochs" in done.stdout + done.stderr
    assert "Done so far          nothing" in done.stdout + done.stderr
    everything = {"prepare", "train", "evaluate", "predict", "explain", "report", "all"}
    assert planned(snakemake(tmp_path, config_file, "--dry-run")) == everything
    done = snakemake(tmp_path, config_file, "--dry-run", "--config", "bach_size=3")
    assert done.returncode != 0
    assert "--config: no setting is called 'bach_size'; did you mean 'batch_size'" in done.stdout + done.stderr


@needs_snakemake
def test_a_graph_of_ones_own_inherits_nothing_and_errors_name_its_file(tmp_path):
    config_file = tmp_path / "mine.yaml"
    graph = f"nodes: {KGX / 'nodes.jsonl'}\nedges: {KGX / 'edges.jsonl'}\n"
    config_file.write_text(graph)
    # config.yaml has queries, so that `predict` would run.
    assert planned(snakemake(tmp_path, config_file, "--dry-run")) == {
        "prepare", "train", "evaluate", "explain", "report", "all",
    }  # fmt: skip
    config_file.write_text(f"{graph}num_epoch: 3\n")
    done = snakemake(tmp_path, config_file, "--dry-run")
    assert f"{config_file}: no setting is called 'num_epoch'" in done.stdout + done.stderr


def test_missing_files_of_a_graph_are_named_with_the_file_that_names_them():
    given = {"base": "elsewhere", "nodes": str(KGX / "nodes.jsonl"), "edges": "edgs.jsonl"}
    with pytest.raises(InputError, match=r"^mine\.yaml: edges: edgs\.jsonl: no such file"):
        Pipeline(given, origins_of({"mine.yaml": given}, [])).require_sources()


def test_info_tells_what_a_prepared_graph_will_take(tmp_path):
    """Settings of training that are left out are those advised for the graph's size."""
    given = {"base": str(tmp_path), "nodes": str(KGX / "nodes.jsonl"), "edges": str(KGX / "edges.jsonl")}
    configured = Pipeline(given, {"nodes": "mine.yaml"})
    assert "known once the graph is prepared" in configured.info()
    prepare_data.main([*configured.prepare_settings, "--output-dir", str(configured.data["train"].parent)])
    told = Pipeline(given, {"nodes": "mine.yaml"}).info()
    assert "Settings from        mine.yaml\n" in told
    flags = re.search(r"train_pytorch.py +(.*)", told)[1].split()
    advised = advised_training(len(configured.data["train"].read_text().splitlines()), num_entities=0)
    parsed = train_pytorch.build_parser().parse_args([*flags, *FILES_OF_TRAINING])
    assert {name: getattr(parsed, name) for name in advised} == advised
    assert not parsed.use_mixed_precision
    entities = len(configured.data["entity_to_id"].read_text().splitlines())
    assert f"Size                 {entities} entities, " in told
    assert re.search(r"Training takes +about .* of one core .*GB of memory", told)


@needs_snakemake
@pytest.mark.slow
def test_one_job_each_gives_the_same_explanations(kgx_run, tmp_path):
    config_file = kgx_config(tmp_path, explain_together=False)
    done = snakemake(tmp_path, config_file)
    assert done.returncode == 0, done.stderr
    each, together = (path / "out 'of' \"it\"" / "CGGD_alltreat" for path in (tmp_path, kgx_run[0]))
    for number in (1, 2):
        one, other = (
            json.loads((root / "explanations" / f"{number}.json").read_text())["influences"]
            for root in (each, together)
        )
        assert [row["train_head"] for row in one] == [row["train_head"] for row in other]
        assert [row["influence"] for row in one] == pytest.approx([row["influence"] for row in other], rel=1e-4)
        assert (each / "explanations" / f"{number}.html").is_file()
    assert 'href="explanations/2.html"' in (each / "report.html").read_text(encoding="utf-8")
    assert NOTHING_TO_DO in (again := snakemake(tmp_path, config_file, "--dry-run")).stdout + again.stderr


@needs_snakemake
@pytest.mark.slow
@pytest.mark.parametrize("kill", [os.killpg, os.kill], ids=["everything", "Snakemake alone"])
def test_killed_run_goes_on(tmp_path, kill):
    num_epochs = 150
    config_file = kgx_config(
        tmp_path, num_epochs=num_epochs, checkpoint_frequency=2, eval_frequency=50, explain_together=True
    )
    arguments = ["--snakefile", ROOT / "Snakefile_pytorch_conve", "--cores", "2", "--directory", tmp_path]
    running = subprocess.Popen(
        [*SNAKEMAKE, *map(str, arguments), "--configfile", str(config_file)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    model = tmp_path / "out 'of' \"it\"" / "CGGD_alltreat" / "model"
    try:
        deadline = time.monotonic() + 120
        while not (model / "checkpoints" / "checkpoint_epoch_6.pt").exists():
            assert running.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        kill(running.pid, signal.SIGKILL)
        running.wait()
    assert not (model / "test_results.json").exists()
    assert snakemake(tmp_path, config_file, "--unlock").returncode == 0
    done = snakemake(tmp_path, config_file)
    assert done.returncode == 0, done.stderr
    log = (model.parent / "logs" / "train.log").read_text(encoding="utf-8")
    resumed = int(re.search(r"going on after epoch (\d+)", log)[1])
    # Training that was left behind comes to its end before this run takes over from it.
    assert resumed == num_epochs if kill is os.kill else 6 <= resumed < num_epochs
    history = json.loads((model / "training_history.json").read_text())
    assert [record["epoch"] for record in history] == list(range(1, num_epochs + 1))


# ---------------------------------------------------------------------------------------------------------------
# The document


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT, re.DOTALL | re.MULTILINE)


def commands():
    return [shlex.split(command) for command in commands_in(DOCUMENT)]


def checkout(directory):
    """Copy what a user has after cloning, as far as the pipeline needs it."""
    directory.mkdir()
    for path in (*ROOT.glob("*.py"), *ROOT.glob("requirements*.txt"), ROOT / "constraints.txt", ROOT / "config.yaml"):
        shutil.copy(path, directory)
    shutil.copy(ROOT / "Snakefile_pytorch_conve", directory)
    for name in ("conve_tracin", "profiles"):
        shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("nodes.jsonl", "edges.jsonl"):
        shutil.copy(KGX / name, directory)
    (settings,) = blocks("yaml")
    (directory / "my_graph.yaml").write_text(settings, encoding="utf-8")
    return directory


def test_document_names_the_styles_and_settings():
    styles = re.findall(r"^\| `(\w+)` \| (?:chem|every edge|C?CGGD)", DOCUMENT, re.MULTILINE)
    assert tuple(styles) == settings.STYLES
    table = DOCUMENT.split("| setting |")[1].split("\n\n")[0]
    for name in re.findall(r"`(\w+)`", table):
        if name not in ("true", "false"):
            values = {"nodes": None, "triples": None, "dataset": "umls", "candidate_category": None}
            values |= dict.fromkeys(("explain_together", "verify", "verify_together"), True)
            Pipeline({"dataset": "umls", name: values.get(name, 1)})
    for words in commands():
        if words[0] == "pip":
            for option in ("--requirement", "--constraint"):
                if option in words:
                    assert (ROOT / words[words.index(option) + 1]).is_file()


@needs_snakemake
@pytest.mark.slow
def test_commands_of_the_document_run_as_they_stand(tmp_path):
    directory = checkout(tmp_path / "checkout")
    for words in commands():
        # test_documents.py has the installations, and a test below the profile of a cluster.
        if words[0] == "pip" or "--workflow-profile" in words:
            continue
        start = {"snakemake": SNAKEMAKE, "python": [sys.executable]}[words[0]]
        done = subprocess.run([*start, *words[1:]], cwd=directory, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
    umls = directory / "results" / "umls" / "keepall"
    assert json.loads((umls / "model" / "test_results.json").read_text())["mean_reciprocal_rank"] > 0.9
    for root, number in ((umls, 5), (directory / "results" / "my_graph" / "CGGD_alltreat", 3)):
        page = (root / "report.html").read_text(encoding="utf-8")
        assert page.count('href="explanations/') == number
        for place in range(1, number + 1):
            assert (root / "explanations" / f"{place}.html").is_file()
    assert (directory / "data" / "edge_map.json").is_file()
    for words in (("--configfile", "my_graph.yaml", "--config", "num_explained=3"), ()):
        done = subprocess.run(
            [*SNAKEMAKE, "--snakefile", "Snakefile_pytorch_conve", "--cores", "all", "--dry-run", *words],
            cwd=directory, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert NOTHING_TO_DO in done.stdout + done.stderr


@needs_snakemake
@pytest.mark.skipif(
    importlib.util.find_spec("snakemake_executor_plugin_slurm") is None,
    reason="for `pip install snakemake-executor-plugin-slurm`, which only clusters need",
)
@pytest.mark.slow
def test_profile_of_a_cluster_with_stand_ins_for_slurm(tmp_path):
    """The plugin's calls of sbatch carry the profile's settings, and its jobs, run at once, make the report."""
    directory, programs, calls = checkout(tmp_path / "checkout"), tmp_path / "bin", tmp_path / "calls"
    programs.mkdir()
    for name, script in SLURM.items():
        (programs / name).write_text(f"#!/bin/bash\nCALLS={shlex.quote(str(calls))}\n{script}\n")
        (programs / name).chmod(0o755)
    (words,) = [words for words in commands() if "--workflow-profile" in words]
    tiny = [f"{name}={value}" for name, value in {**TINY, "base": "out", "num_explained": 1, "no_gpu": False}.items()]
    done = subprocess.run(
        [*SNAKEMAKE, *words[1:], "--latency-wait", "5", "--slurm-init-seconds-before-status-checks", "1",
         "--config", *tiny],
        cwd=directory, env=os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (directory / "out" / "keepall" / "report.html").is_file()
    submitted = {line.split("--comment rule_")[1].split()[0]: line for line in calls.read_text().splitlines()}
    assert submitted.keys() == {"prepare", "train", "evaluate", "predict", "explain_wildcards_1"}
    assert "-p cpu -t 120 --mem 8000" in submitted["prepare"]
    assert "-p gpu -t 2880 --mem 32000" in submitted["train"]
    assert "--cpus-per-task=8" in submitted["train"]
    assert "--gpus=1" in submitted["explain_wildcards_1"]


def test_steps_are_found_beside_the_package():
    assert (pipeline.SCRIPTS / "train_pytorch.py").is_file()


def test_more_to_explain_than_test_triples_is_found_out_before_training(tmp_path):
    configured = Pipeline({**SHIPPED, **TINY, "base": str(tmp_path / "out"), "num_explained": 3})
    configured.data["test"].parent.mkdir(parents=True)
    configured.data["test"].write_text("a\tr\tb\na\tr\tb\nb\tr\ta\n")
    expected = r"test\.txt: has 2 test triples, fewer than num_explained, 3; lower it in config\.yaml"
    with pytest.raises(StepFailedError, match=expected):
        configured.train(log=tmp_path / "train.log", threads=1)
    assert not configured.model.exists()
    assert not (tmp_path / "train.log").exists()


@needs_snakemake
def test_very_many_explanations_are_one_job_with_few_files_to_watch(tmp_path):
    settings = {**TINY, "base": "out", "num_explained": 100_000, "explain_together": True}
    done = snakemake(tmp_path, write_config(tmp_path, **settings), "--dry-run")
    assert done.returncode == 0, done
    outputs = re.search(r"rule explain_all:\n.*?output: ([^\n]*)\n", done.stdout, re.DOTALL)[1]
    assert outputs.split(", ") == [
        "out/keepall/explanations/1.json", "out/keepall/explanations/100000.json", "out/keepall/report.html",
    ]  # fmt: skip

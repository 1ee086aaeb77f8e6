"""The index beside a file of triples: never seen in a result, and never half of one."""

import errno
import multiprocessing
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from influence_examples import TRAINING
from native_files import ENTITIES, RELATIONS, arguments, files  # noqa: F401 - `files` is a fixture

import predict_pytorch
import tracin_pytorch
import train_pytorch
from conve_tracin.data import index as index_module
from conve_tracin.data.graph import Graph
from conve_tracin.data.index import IndexPlace, read_indexed
from conve_tracin.data.triples import read_triples
from conve_tracin.data.vocabulary import StoredLabels, Vocabulary, read_vocabulary
from conve_tracin.errors import InputError
from conve_tracin.explanation import read as reading
from conve_tracin.influence import curvature
from conve_tracin.influence.load import CheckpointLoader

QUESTION = ["--test-triple", "0", "1", "2", "--top-k", "12"]


@pytest.fixture
def explain(files, caplog):
    """Run the script on the small graph; returns what it writes and says."""

    def run(*flags):
        caplog.clear()
        with caplog.at_level("INFO"):
            tracin_pytorch.main(arguments(files, *QUESTION, "--output", str(files["out.json"]), *map(str, flags)))
        return files["out.json"].read_bytes(), caplog.text

    return run


@pytest.fixture
def make(files):
    """Make the index of the small graph in a directory of its own."""

    def made():
        place = place_of(files)
        vocabularies = vocabularies_of(files)
        return place.make(read_triples(files["train.txt"], *vocabularies), *vocabularies, place.stamps())

    return made


def place_of(files):
    sources = (files["train.txt"], files["entities.tsv"], files["relations.tsv"])
    return IndexPlace.of(sources, files["train.txt"].parent / "indexes")


def vocabularies_of(files):
    return read_vocabulary(files["entities.tsv"], "entity"), read_vocabulary(files["relations.tsv"], "relation")


def folders_of(files):
    return [each for each in place_of(files).folder.glob("*") if not each.name.startswith(".")]


@pytest.mark.parametrize("method", ["tracin", "gauss-newton"])
def test_results_are_the_same_bytes_with_an_index_and_without(explain, files, method):
    chosen = ["--method", method, "--index-dir", files["out.json"].parent / "indexes"]
    expected, said = explain("--method", method, "--no-index")
    assert "index" not in said
    first, said = explain(*chosen)
    assert said.count("an index is made") == 1
    second, said = explain(*chosen)
    assert "index" not in said
    assert first == second == expected


def test_a_small_file_gets_no_index_and_a_large_one_has_it_beside_it(explain, files, monkeypatch):
    beside = files["train.txt"].with_name("train.txt.index")
    expected, _ = explain()
    assert not beside.exists()
    monkeypatch.setattr(index_module, "FEWEST_TRIPLES", len(TRAINING))
    assert explain()[0] == expected
    assert len(list(beside.iterdir())) == 1
    assert explain()[0] == expected


def test_the_stored_graph_is_that_of_the_file(files, make):
    vocabularies = vocabularies_of(files)
    expected = Graph.of_listed(read_triples(files["train.txt"], *vocabularies), len(ENTITIES), len(RELATIONS))
    for graph in (make().graph, place_of(files).find().graph):
        np.testing.assert_array_equal(graph.triples, expected.triples)
        np.testing.assert_array_equal(graph.counts, expected.counts)
        np.testing.assert_array_equal(graph.weights, expected.weights)
        assert graph.digest == expected.digest
        for inverse in (False, True):
            queries = [each.queries(inverse_triples=inverse, repeated=True) for each in (graph, expected)]
            for stored, sorted_now in zip(*map(vars, queries), strict=True):
                np.testing.assert_array_equal(getattr(queries[0], stored), getattr(queries[1], sorted_now))
        for stored, collected in zip(vars(graph.adjacency).values(), vars(expected.adjacency).values(), strict=False):
            np.testing.assert_array_equal(stored, collected)


@pytest.mark.parametrize("changed", ["train.txt", "entities.tsv"])
def test_an_index_of_other_files_is_made_anew(explain, files, changed):
    place = ["--method", "gauss-newton", "--index-dir", files["out.json"].parent / "indexes"]
    explain(*place)
    lines = files[changed].read_text(encoding="utf-8").splitlines(keepends=True)
    text = "".join(lines[1:]) if changed == "train.txt" else "".join(lines).replace("e5\t5", "e6\t5")
    files[changed].write_text(text, encoding="utf-8")
    if changed == "entities.tsv":
        triples = files["train.txt"].read_text(encoding="utf-8")
        files["train.txt"].write_text(triples.replace("e5", "e6"), encoding="utf-8")
    found, said = explain(*place)
    assert said.count("made anew") == 1
    assert found == explain("--method", "gauss-newton", "--no-index")[0]
    assert len(folders_of(files)) == 1


def test_a_file_with_another_time_and_the_same_content_keeps_its_index(explain, files):
    place = ["--index-dir", files["out.json"].parent / "indexes"]
    expected, _ = explain(*place)
    os.utime(files["train.txt"], (0, 0))
    for _ in range(2):
        assert explain(*place) == (expected, explain("--no-index")[1])


@pytest.mark.parametrize(
    "name", ["listed/triples.npy", "entities/text.npy", "contents.json", "queries-listed/keys.npy"]
)
def test_a_broken_index_is_made_anew(explain, files, name):
    place = ["--method", "gauss-newton", "--index-dir", files["out.json"].parent / "indexes"]
    expected, _ = explain(*place)
    (folder,) = folders_of(files)
    (folder / name).write_bytes((folder / name).read_bytes()[:-3])
    found, said = explain(*place)
    assert (found, said.count("made anew")) == (expected, 1)
    assert explain(*place)[0] == expected
    assert "made anew" not in explain(*place)[1]


@pytest.mark.parametrize("files_written", [0, 2, 5])
def test_a_full_disk_leaves_no_half_index(explain, files, monkeypatch, files_written):
    expected, _ = explain("--method", "gauss-newton", "--no-index")
    monkeypatch.setattr(index_module, "FEWEST_TRIPLES", 1)
    monkeypatch.setattr(np, "save", failing_save(files_written))
    found, said = explain("--method", "gauss-newton")
    assert found == expected
    assert said.count("no index is made" if files_written < 5 else "nothing more is stored") == 1
    folder = files["train.txt"].with_name("train.txt.index")
    assert not [each for each in folder.glob("*") if each.name.startswith(".") or not any(each.iterdir())]
    monkeypatch.undo()
    assert explain("--method", "gauss-newton")[0] == expected


def test_a_place_that_was_asked_for_must_be_writable(files, monkeypatch, make):
    monkeypatch.setattr(np, "save", failing_save(0))
    place, vocabularies = place_of(files), vocabularies_of(files)
    with pytest.raises(InputError, match="cannot be written"):
        place.make_if_many(read_triples(files["train.txt"], *vocabularies), *vocabularies, place.stamps())


def failing_save(files_written):
    save, calls = np.save, []

    def full(path, array, **options):
        calls.append(path)
        if len(calls) > files_written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(path, array, **options)

    return full


def test_a_killed_run_leaves_no_half_index(files, make):
    def die():
        np.save = lambda *_, **__: os._exit(9)
        make()

    in_processes(die, 1)
    assert not folders_of(files)
    assert place_of(files).find() is None
    make()
    assert [each.name for each in place_of(files).folder.iterdir()] == [folders_of(files)[0].name]


def test_a_run_with_the_process_id_of_a_killed_one_makes_the_index(files, make):
    make()
    (folder,) = folders_of(files)
    left = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    folder.rename(left)
    assert place_of(files).find() is None
    make()
    assert place_of(files).find() is not None
    assert not left.exists()


def test_an_index_that_another_process_removes_at_once_is_done_without(explain, files, monkeypatch):
    expected, _ = explain("--no-index")
    whole = index_module.Index.is_whole

    def removed(self):
        shutil.rmtree(self.folder)
        return whole(index_module.Index(self.folder, self.place))

    monkeypatch.setattr(index_module.Index, "is_whole", removed)
    found, said = explain("--index-dir", files["out.json"].parent / "indexes")
    assert (found, said.count("goes on without")) == (expected, 1)


def test_several_processes_make_the_same_index_at_once(files, make):
    def work():
        graph = make().graph
        graph.queries(inverse_triples=True)
        assert len(graph.adjacency.neighbours)

    assert in_processes(work, 4) == [0] * 4
    (folder,) = folders_of(files)
    assert not [each for each in folder.rglob("*") if each.name.startswith(".")]
    assert place_of(files).find() is not None


def in_processes(work, number):
    started = [multiprocessing.get_context("fork").Process(target=work) for _ in range(number)]
    for process in started:
        process.start()
    for process in started:
        process.join(timeout=60)
    return [process.exitcode for process in started]


def test_a_mapping_with_other_ids_is_noticed_though_its_size_and_time_are_the_same(explain, files):
    place = ["--method", "gauss-newton", "--index-dir", files["out.json"].parent / "indexes"]
    explain(*place)
    mapping = files["relations.tsv"]
    status = mapping.stat()
    text = mapping.read_text(encoding="utf-8")
    mapping.write_text(text.replace("\t0", "\tx").replace("\t1", "\t0").replace("\tx", "\t1"), encoding="utf-8")
    os.utime(mapping, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (mapping.stat().st_size, mapping.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert place_of(files).find() is None


def test_a_mapping_that_is_replaced_while_a_run_reads_leaves_no_index(explain, files, monkeypatch):
    read = reading.read_names_from

    def read_and_replace(*arguments):
        names = read(*arguments)
        text = files["entities.tsv"].read_text(encoding="utf-8")
        files["entities.tsv"].write_text(text.replace("\t0", "\tx").replace("\t1", "\t0").replace("\tx", "\t1"))
        return names

    monkeypatch.setattr(reading, "read_names_from", read_and_replace)
    with pytest.raises((InputError, SystemExit)):
        explain("--index-dir", files["out.json"].parent / "indexes")
    assert place_of(files).find() is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_a_pipe_is_read_once_and_gets_no_index(files):
    vocabularies = vocabularies_of(files)
    triples = read_triples(files["train.txt"], *vocabularies)
    pipe = files["train.txt"].with_name("pipe.txt")
    os.mkfifo(pipe)
    place = IndexPlace.of((pipe, files["entities.tsv"], files["relations.tsv"]), pipe.parent / "indexes")
    assert place.find() is None
    assert place.make_if_many(triples, *vocabularies, place.stamps()) is None


@pytest.mark.parametrize("name", ["distinct/triples.npy", "around/neighbours.npy", "digest/digest.npy"])
def test_a_structure_that_lost_an_array_is_made_anew(files, make, name):
    graph = make().graph
    expected = graph.triples.copy(), graph.adjacency.neighbours.copy(), graph.digest
    (folder,) = folders_of(files)
    (folder / name).unlink()
    graph = place_of(files).find().graph
    np.testing.assert_array_equal(graph.triples, expected[0])
    np.testing.assert_array_equal(graph.adjacency.neighbours, expected[1])
    assert graph.digest == expected[2]


def test_an_index_that_is_removed_while_it_is_used_stays_usable(files, make):
    expected = make().graph.triples.copy()
    index = place_of(files).find()
    shutil.rmtree(place_of(files).folder)
    np.testing.assert_array_equal(index.graph.triples, expected)
    assert index.vocabularies[0].labels[:] == vocabularies_of(files)[0].labels


def test_a_checkpoint_that_is_written_while_it_is_read_keeps_no_curvature(explain, files, monkeypatch):
    load = CheckpointLoader.load_model

    def load_and_touch(self, path):
        loaded = load(self, path)
        os.utime(path, (0, 0))
        return loaded

    monkeypatch.setattr(curvature, "KEPT_FROM", 1)
    monkeypatch.setattr(CheckpointLoader, "load_model", load_and_touch)
    place = ["--method", "gauss-newton", "--index-dir", files["out.json"].parent / "indexes"]
    expected = explain(*place)[0]
    (folder,) = folders_of(files)
    assert not (folder / "models").exists()
    monkeypatch.setattr(CheckpointLoader, "load_model", load)
    assert explain(*place)[0] == expected
    assert (folder / "models").is_dir()


def test_triples_that_are_dropped_leave_no_index(explain, files):
    with files["train.txt"].open("a", encoding="utf-8") as file:
        file.write("nobody\tknows\tthem\n")
    _, said = explain("--skip-unknown", "--index-dir", files["out.json"].parent / "indexes")
    assert "were dropped" in said
    assert not folders_of(files)


def test_stored_labels_are_the_labels():
    labels = ("a", "café", "日本", "ab", "b", "a b", "x" * 300)
    stored = Vocabulary("entity", StoredLabels(**StoredLabels.arrays_of(labels)), Path("labels"))
    plain = Vocabulary("entity", labels)
    assert tuple(stored.labels) == labels == stored.labels[:] == tuple(stored.labels[i] for i in range(len(labels)))
    assert (len(stored), stored.labels[-1], stored.digest()) == (len(labels), labels[-1], plain.digest())
    for searches in (1, 100):
        for _ in range(searches):
            assert [stored.index.get(label) for label in (*labels, "", "é", "caf", "no")] == [*range(7), *[None] * 4]
    with pytest.raises(IndexError):
        stored.labels[len(labels)]
    with pytest.raises(InputError, match="did you mean 'café'"):
        stored.id_of("cafe")


@pytest.fixture
def beside(files):
    """The index of the small graph, beside its file."""
    vocabularies = vocabularies_of(files)
    place = IndexPlace.of((files["train.txt"], files["entities.tsv"], files["relations.tsv"]))
    return place.make(read_triples(files["train.txt"], *vocabularies), *vocabularies, place.stamps())


def forbid_reading(monkeypatch, path):
    """Let no one read the triples of a file as text."""

    def read(asked, *arguments, **keywords):
        assert Path(asked) != path
        return read_triples(asked, *arguments, **keywords)

    monkeypatch.setattr(index_module, "read_triples", read)


def test_other_scripts_take_triples_from_an_index_that_is_there(files, beside, monkeypatch):
    expected = read_triples(files["train.txt"], *vocabularies_of(files))
    with monkeypatch.context() as patch:
        forbid_reading(patch, files["train.txt"])
        np.testing.assert_array_equal(read_indexed(files["train.txt"], *vocabularies_of(files)), expected)
    # A file that has changed, or an index of other mappings, is not used.
    files["train.txt"].write_text(files["train.txt"].read_text("utf-8").partition("\n")[0] + "\n", "utf-8")
    np.testing.assert_array_equal(read_indexed(files["train.txt"], *vocabularies_of(files)), expected[:1])
    entities, relations = vocabularies_of(files)
    bare = Vocabulary("entity", entities.labels)
    np.testing.assert_array_equal(read_indexed(files["train.txt"], bare, relations), expected[:1])


def test_predictions_and_training_data_are_the_same_with_an_index(files, monkeypatch):
    mappings = ["--entity-to-id", str(files["entities.tsv"]), "--relation-to-id", str(files["relations.tsv"])]
    out, train = files["out.json"], str(files["train.txt"])

    def predicted():
        question = ["--head", "0", "--relation", "1", "--known", train, "--output", str(out)]
        predict_pytorch.main(["--model-path", str(files["model.pt"]), *mappings, *question])
        return out.read_bytes()

    def splits():
        command = ["--train", train, "--valid", train, "--test", train, *mappings, "--output-dir", str(out.parent)]
        data = train_pytorch.read_data(train_pytorch.build_parser().parse_args(command))
        return data.train, data.valid, data.test

    expected = predicted(), splits()
    vocabularies = vocabularies_of(files)
    place = IndexPlace.of((train, files["entities.tsv"], files["relations.tsv"]))
    place.make(read_triples(train, *vocabularies), *vocabularies, place.stamps())
    forbid_reading(monkeypatch, files["train.txt"])
    assert predicted() == expected[0]
    for mine, its in zip(splits(), expected[1], strict=True):
        np.testing.assert_array_equal(mine, its)

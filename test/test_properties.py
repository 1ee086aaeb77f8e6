"""Properties of all inputs: what is written is read back, and broken files are refused or used as they are.

The default run takes the same few examples each time; `pytest -m slow` takes many, and others each time.
"""

import copy
import csv
import gzip
import io
import json
import re
import shutil
import zlib
from pathlib import Path

import conftest
import numpy as np
import pytest
import torch
from command_lines import Finished, assert_refused, run
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from influence_examples import gradients_by_hand
from project_files import COMMANDS, assert_right, clean, influences_by_hand, write  # noqa: F401 - a fixture

from conve_tracin.data.names import Names, read_names, read_predicates
from conve_tracin.data.resolve import read_test_triples, resolve_triple
from conve_tracin.data.triples import read_triples, write_triples
from conve_tracin.data.vocabulary import Vocabulary, read_vocabulary, write_vocabulary
from conve_tracin.errors import InputError
from conve_tracin.influence.method import Influence
from conve_tracin.influence.trace import Trace
from conve_tracin.model.conve import ConvE
from conve_tracin.report.tables import safe_file_name, trace_as_csv_rows, write_csv


def examples(quick: int, many: int):
    """Run a test with few examples, and marked slow with many."""
    return pytest.mark.parametrize("number", [quick, pytest.param(many, marks=pytest.mark.slow)])


def hold(number, *strategies):
    """Decorate what must hold for `number` examples; it is checked at once."""

    def check(property_):
        is_quick = number <= 100
        chosen = settings(
            max_examples=number, deadline=None, derandomize=is_quick, database=None, print_blob=True,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        chosen(given(*strategies)(property_))()

    return check


# What a tab-separated file can hold; the mark of byte order alone cannot begin a label.
LABEL = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\t\n\r\0"), min_size=1, max_size=12
).filter(lambda label: not label.startswith("\ufeff"))
ODD_LABEL = st.sampled_from(["0", "1", "-1", "007", '"', "id", "label", "NA", " "])
LABELS = st.lists(LABEL | ODD_LABEL, min_size=1, max_size=8, unique=True)
ENCODINGS = st.sampled_from(["plain", "gzip", "BOM", "CRLF", "no last line end", "gzip, BOM and CRLF"])


def encode(content: bytes, encoding: str) -> bytes:
    """Write the same content in another of the accepted ways."""
    if encoding == "no last line end":
        return content.removesuffix(b"\n")
    if "CRLF" in encoding:
        content = content.replace(b"\n", b"\r\n")
    if "BOM" in encoding:
        content = b"\xef\xbb\xbf" + content
    return gzip.compress(content) if "gzip" in encoding else content


# ---------------------------------------------------------------------------------------------------------------
# Files


@examples(100, 1000)
def test_triples_are_read_back(tmp_path, number):
    path = tmp_path / "triples"

    @hold(number, LABELS, LABELS, st.data())
    def check(entities, relations, data):
        head, relation = st.integers(0, len(entities) - 1), st.integers(0, len(relations) - 1)
        ids = data.draw(st.lists(st.tuples(head, relation, head), min_size=1, max_size=12))
        write_triples(path, [(entities[h], relations[r], entities[t]) for h, r, t in ids])
        path.write_bytes(encode(path.read_bytes(), data.draw(ENCODINGS)))
        read = read_triples(path, Vocabulary("entity", entities), Vocabulary("relation", relations))
        assert read.tolist() == [list(triple) for triple in ids]


@examples(100, 1000)
def test_mappings_are_read_back_in_every_format(tmp_path, number):
    path = tmp_path / "mapping"

    @hold(number, LABELS, ENCODINGS, st.sampled_from(["own", "shuffled", "OpenKE", "PyKEEN"]), st.randoms())
    def check(labels, encoding, form, random):
        write_vocabulary(path, labels)
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        if form != "own":
            random.shuffle(lines)
        if form == "OpenKE":
            lines.insert(0, str(len(labels)))
        if form == "PyKEEN":
            text = io.StringIO(newline="")
            rows = [line.split("\t")[::-1] for line in lines]
            csv.writer(text, delimiter="\t", lineterminator="\n").writerows([["id", "label"], *rows])
            lines = text.getvalue().removesuffix("\n").split("\n")
        path.write_bytes(encode("".join(f"{line}\n" for line in lines).encode(), encoding))
        vocabulary = read_vocabulary(path, "entity")
        assert vocabulary.labels == tuple(labels)
        assert vocabulary.digest() == Vocabulary("relation", tuple(labels)).digest()


@examples(100, 1000)
def test_names_and_predicates_are_read_back(tmp_path, number):
    path = tmp_path / "names"
    qualifiers = st.dictionaries(
        st.sampled_from(["object_aspect_qualifier", "q"]), LABEL.filter(lambda t: ":" not in t)
    )

    @hold(number, st.lists(LABEL, min_size=1, max_size=8), LABELS, ENCODINGS, st.data())
    def check(names, labels, encoding, data):
        path.write_bytes(encode("".join(f"{name}\t{n}\n" for n, name in enumerate(names)).encode(), encoding))
        assert read_names(path) == dict(enumerate(names))
        meanings = {label: (data.draw(LABEL), data.draw(qualifiers)) for label in labels}
        keys = {json.dumps({"predicate": name, **more}): label for label, (name, more) in meanings.items()}
        assume(len(keys) == len(labels))
        text = json.dumps(keys, ensure_ascii=data.draw(st.booleans()), indent=data.draw(st.sampled_from([None, 1])))
        path.write_bytes(encode(text.encode() + b"\n", encoding))
        read = read_predicates(path)
        assert set(read) == set(labels)
        assert len(set(read.values())) == len(labels)
        for label, (name, more) in meanings.items():
            assert read[label].startswith(name)
            assert all(value in read[label] for value in more.values())


def id_by_the_rule(values, vocabularies):
    """The rule of the documents: three integers are ids; otherwise a label comes first, then an integer as id.

    None where no triple is meant, or where integers are ids of one triple and labels of another.
    """
    is_integer = [re.fullmatch(r"-?(0|[1-9][0-9]*)", value) is not None for value in values]
    labels = [
        v.labels.index(value) if value in v.labels else None for value, v in zip(values, vocabularies, strict=True)
    ]
    ids = [
        int(value) if integer and 0 <= int(value) < len(v.labels) else None
        for value, integer, v in zip(values, is_integer, vocabularies, strict=True)
    ]
    if all(is_integer):
        return None if None in ids or (None not in labels and labels != ids) else ids
    labels_first = [id_ if label is None else label for label, id_ in zip(labels, ids, strict=True)]
    ids_first = [(id_ if integer else label) for label, id_, integer in zip(labels, ids, is_integer, strict=True)]
    if None in labels_first or (None not in ids_first and ids_first != labels_first):
        return None
    return labels_first


@examples(100, 1000)
def test_test_triples_are_ids_or_labels_by_the_rule(tmp_path, number):
    path = tmp_path / "listed"
    integers = st.integers(-3, 12).map(str) | st.integers(-(10**30), 10**30).map(str)

    @hold(number, LABELS, LABELS, st.data())
    def check(entities, relations, data):
        vocabularies = [Vocabulary("entity", entities), Vocabulary("relation", relations)]
        vocabularies.append(vocabularies[0])
        values = [data.draw(integers | st.sampled_from(v.labels) | LABEL) for v in vocabularies]
        expected = id_by_the_rule(values, vocabularies)
        path.write_bytes(encode(("\t".join(values) + "\n").encode(), data.draw(ENCODINGS)))
        if expected is None:
            with pytest.raises(InputError):
                resolve_triple(values, *vocabularies[:2])
            with pytest.raises(InputError, match=r"listed:1: "):
                read_test_triples(path, *vocabularies[:2])
        else:
            assert list(resolve_triple(values, *vocabularies[:2])) == expected
            assert read_test_triples(path, *vocabularies[:2]).tolist() == [expected]


@examples(100, 1000)
def test_any_label_survives_the_table_and_none_is_a_formula(tmp_path, number):
    anything = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=8)
    formula = st.builds(
        lambda start, rest: start + rest, st.sampled_from(["=", "+", "-", "@", "\t", "\r", "'=", "''+"]), anything
    )

    @hold(number, st.lists(anything | formula, min_size=1, max_size=6, unique=True))
    def check(labels):
        names = Names(Vocabulary("entity", labels), Vocabulary("relation", ("r",)))
        influences = [Influence(place, 0, place, 0.5, place) for place in range(len(labels))]
        write_csv(
            tmp_path / "t.csv",
            trace_as_csv_rows(Trace((0, 0, 0), influences, [], []), names, dict.fromkeys(range(6), 1.0)),
        )
        with (tmp_path / "t.csv").open(encoding="utf-8", newline="") as file:
            cells = [row["TrainHead"] for row in csv.DictReader(file)]
        assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in cells)
        assert [re.sub(r"^'(?='*[=+\-@\t\r])", "", cell) for cell in cells] == labels


@examples(100, 1000)
def test_any_label_makes_a_safe_file_name(number):
    @hold(number, st.lists(st.text(max_size=300), min_size=3, max_size=3))
    def check(labels):
        name = safe_file_name("test_0", *labels, suffix=".json")
        assert re.fullmatch(r"test_0[A-Za-z0-9._-]*\.json", name)
        assert len(name) < 200


# ---------------------------------------------------------------------------------------------------------------
# Whole runs


@st.composite
def small_graphs(draw):
    """Triples (N, 3), and how many entities and relations there are."""
    num_entities, num_relations = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    entity, relation = st.integers(0, num_entities - 1), st.integers(0, num_relations - 1)
    triples = draw(st.lists(st.tuples(entity, relation, entity), min_size=2, max_size=14))
    return np.array(triples), num_entities, num_relations


@st.composite
def model_settings(draw):
    """Flags of a model that is tiny and of any proportions, and of its training."""
    height, width = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    sizes = {
        "embedding-height": height, "embedding-width": width, "embedding-dim": height * width,
        "kernel-height": draw(st.integers(1, 2 * height)), "kernel-width": draw(st.integers(1, width)),
        "output-channels": draw(st.integers(1, 3)), "num-epochs": draw(st.integers(1, 2)),
        "batch-size": draw(st.integers(1, 5)), "learning-rate": draw(st.sampled_from([0.001, 0.03])),
        "training-approach": draw(st.sampled_from(["1vsall", "kvsall"])),
        "random-seed": draw(st.integers(0, 5)),
    }  # fmt: skip
    switches = [flag for flag in ("--inverse-triples", "--entity-bias") if draw(st.booleans())]
    return [*(part for name, value in sizes.items() for part in (f"--{name}", value)), *switches]


@examples(15, 150)
def test_random_graphs_are_trained_and_explained_as_by_hand(tmp_path, monkeypatch, number):
    monkeypatch.chdir(tmp_path)

    @hold(number, small_graphs(), model_settings(), st.sampled_from([1, 3, 256]), st.booleans())
    def check(graph, given_settings, batch_size, optimized):
        triples, num_entities, num_relations = graph
        shutil.rmtree("out", ignore_errors=True)
        entities, relations = [f"e{n}" for n in range(num_entities)], [f"r{n}" for n in range(num_relations)]
        made = conftest.Graph(triples, triples, triples, entities, relations)
        for name in ("train.tsv", "valid.tsv", "test.tsv"):
            write(name, "".join(conftest.triple_lines(made, triples)))
        write("entity_to_id.tsv", "".join(conftest.mapping_lines(entities)))
        write("relation_to_id.tsv", "".join(conftest.mapping_lines(relations)))
        done = run(*COMMANDS["train"], *given_settings)
        if "--inverse-triples" not in given_settings and len(np.unique(triples[:, :2], axis=0)) < 2:
            assume(done.code == 0)  # a single query; BatchNorm needs two
        assert done.code == 0, done
        more = ["--model-path", "out/final_model.pt", "--test", "test.tsv", "--top-k", "99", "--batch-size", batch_size]
        done = run(*COMMANDS["run self"], *more, "--mode", "test", *(["--use-optimized-tracin"] if optimized else []))
        assert done.code == 0, done
        results = json.loads(Path("out/influences.json").read_text(encoding="utf-8"))["results"]
        rows = triples * [1, 2, 1] if "--inverse-triples" in given_settings else triples
        assert_right(results, influences_by_hand("out/final_model.pt", rows, rows), triples)


# ---------------------------------------------------------------------------------------------------------------
# Broken files

TOKENS = (
    b"\t", b"\n", b"\r", b"\r\n", b"\0", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\x1f\x8b", b'"', b"'", b"-1", b"0",
    b"1e5", b"9" * 30, b"NaN", b"\xe2\x80\xa8", b"\x85", b"\x0b", b"\x1c", b" ", b"\\", b"{", b"}", b"[", b",", b"null",
    b"=cmd", b"\xed\xa0\x80", b"\xc3", "é".encode(),
)  # fmt: skip


@st.composite
def changes(draw):
    """A function that changes some bytes: flipped, cut off, taken out, put in, repeated, or lines in another order."""
    steps = draw(st.lists(
        st.tuples(
            st.sampled_from(["flip", "cut", "remove", "insert", "repeat", "swap lines"]),
            st.floats(0, 1, exclude_max=True), st.sampled_from([1, 5, 50]), st.sampled_from(TOKENS), st.integers(0, 7),
        ),
        min_size=1, max_size=3,
    ))  # fmt: skip

    def change(content: bytes) -> bytes:
        for kind, place, length, token, bit in steps:
            start = int(place * len(content))
            before, part, after = content[:start], content[start : start + length], content[start + length :]
            if kind == "flip" and part:
                content = before + bytes([part[0] ^ 1 << bit]) + part[1:] + after
            elif kind == "cut":
                content = before
            elif kind == "remove":
                content = before + after
            elif kind == "insert":
                content = before + token + part + after
            elif kind == "repeat":
                content = before + part + part + after
            elif kind == "swap lines":
                lines = content.split(b"\n")
                one, other = int(place * len(lines)), bit % len(lines)
                lines[one], lines[other] = lines[other], lines[one]
                content = b"\n".join(lines)
        return content

    return change


@pytest.fixture
def files(clean, tmp_path, monkeypatch):
    """A copy of the project, as the working directory, and what its files hold."""
    shutil.copytree(clean, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return {path.name: path.read_bytes() for path in Path().iterdir()}


def assert_refused_or_done(finished: Finished) -> bool:
    """Whether a run has done its work; otherwise it was refused with one line."""
    assert finished.trouble is None, finished
    if finished.code == 0:
        return True
    if finished.code == 1:
        # Conversions are verified, and then exit code 1 says that both models differ.
        assert re.fullmatch(r"convert_checkpoint\.py: verification failed: .*\n", finished.err), finished
        return False
    message = assert_refused(finished, began=True)
    assert "; " in message or "(see " in message, "it names no remedy"
    return False


def read_by_hand(content: bytes):
    """Read triples without this package: ([head, relation, tail], …), or the number of the first line that is wrong.

    0 stands for a file that is wrong as a whole.
    """
    if content.startswith(b"\x1f\x8b"):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error):
            return 0
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return 0
    content = content.removeprefix(b"\xef\xbb\xbf")
    triples = []
    for number, line in enumerate(content.removesuffix(b"\n").split(b"\n"), start=1):
        columns = line.removesuffix(b"\r").split(b"\t")
        try:
            decoded = [column.decode("utf-8") for column in columns]
        except UnicodeDecodeError:
            return number
        if len(columns) != 3 or not all(columns) or b"\r" in b"".join(columns) or b"\0" in line:
            return number
        triples.append(decoded)
    return triples


@examples(100, 1000)
def test_broken_triples_are_refused_at_their_line_or_read_as_they_are(files, number):
    @hold(number, changes(), st.booleans())
    def check(change, compressed):
        shutil.rmtree("out", ignore_errors=True)
        content = change(files["train.tsv"])
        Path("train.tsv").write_bytes(gzip.compress(content) if compressed else content)
        expected = read_by_hand(content)
        done = run(*COMMANDS["prepare"])
        if assert_refused_or_done(done):
            written = Path("out/train.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")
            assert [line.split("\t") for line in written] == expected
        else:
            assert isinstance(expected, int) or expected[0][0].startswith("\ufeff"), done
            assert not Path("out").exists()
            # A byte that is no text is found before a line with a wrong number of columns.
            is_text = "UTF-8" not in done.err and "gzip" not in done.err and "empty;" not in done.err
            if isinstance(expected, int) and expected and is_text:
                assert f"train.tsv:{expected}: " in done.err


@examples(60, 1000)
def test_broken_mappings_are_refused_or_change_nothing(files, number):
    assert run(*COMMANDS["run"]).code == 0
    expected = Path("out/influences.json").read_bytes()

    @hold(number, changes(), st.sampled_from(["entity_to_id.tsv", "relation_to_id.tsv"]))
    def check(change, name):
        shutil.rmtree("out", ignore_errors=True)
        Path(name).write_bytes(change(files[name]))
        if assert_refused_or_done(run(*COMMANDS["run"])):
            # The checkpoint knows the digest of its mappings, so only the same labels with the same ids can pass.
            assert Path("out/influences.json").read_bytes() == expected
        Path(name).write_bytes(files[name])


@examples(60, 1000)
def test_other_broken_texts_are_refused_or_used(files, number):
    texts = ["train.tsv", "test.tsv", "names.txt", "edge_map.json", "listed.txt", "nodes.jsonl", "edges.jsonl"]
    commands = dict.fromkeys(("train.tsv", "test.tsv"), ("run", "train"))
    commands |= dict.fromkeys(("names.txt", "edge_map.json"), ("run", "tracin"))
    commands |= {"listed.txt": ("run listed", "tracin many")}
    commands |= dict.fromkeys(("nodes.jsonl", "edges.jsonl"), ("prepare KGX",))

    @hold(number, changes(), st.sampled_from(texts), st.data())
    def check(change, name, data):
        shutil.rmtree("out", ignore_errors=True)
        Path(name).write_bytes(change(files[name]))
        done = run(*COMMANDS[data.draw(st.sampled_from(commands[name]))])
        if not assert_refused_or_done(done):
            assert not Path("out").exists()
        Path(name).write_bytes(files[name])


CHECKPOINT_COMMANDS = {
    "model.pt": ("run", "run self", "tracin", "resume", "convert"),
    "converted.pt": ("run converted", "convert back"),
}


@examples(60, 1000)
def test_checkpoints_with_broken_bytes_are_refused_or_change_nothing(files, number):
    expected = {}
    for name, command in (("model.pt", "run"), ("converted.pt", "run converted")):
        assert run(*COMMANDS[command]).code == 0
        expected[name] = Path("out/influences.json").read_bytes()

    @hold(number, changes(), st.sampled_from(list(CHECKPOINT_COMMANDS)), st.data())
    def check(change, name, data):
        shutil.rmtree("out", ignore_errors=True)
        Path(name).write_bytes(change(files[name]))
        command = data.draw(st.sampled_from(CHECKPOINT_COMMANDS[name]))
        if assert_refused_or_done(run(*COMMANDS[command])) and command in ("run", "run converted"):
            assert Path("out/influences.json").read_bytes() == expected[name]
        Path(name).write_bytes(files[name])


VALUES = (
    None, -1, 0, 1, 3, 7, 2**40, 2**70, 1.5, -0.5, float("nan"), float("inf"), "", "x", [], {}, [1, "a"], {"a": 1},
    {1: 2}, True, False, b"abc", (1, 2), torch.tensor(1.0), torch.zeros(0), torch.zeros(2, 3),
    torch.tensor(float("nan")), torch.zeros(3, dtype=torch.complex64), torch.zeros(1).expand(10**9, 12),
)  # fmt: skip
NAMES_OF_MEMBERS = (1, None, "zzz", b"x", ("a",))
TENSORS = (
    torch.Tensor.double, torch.Tensor.half, torch.Tensor.long, torch.Tensor.bool, torch.Tensor.neg,
    torch.Tensor.to_sparse,
    lambda t: t.to(torch.complex64), lambda t: t.to(torch.bfloat16), lambda t: t.float().to(torch.float8_e4m3fn),
    lambda t: t.T, lambda t: t[None], lambda t: t[1:], lambda t: t[:0], lambda t: t.flip(0), lambda t: t.reshape(-1),
    lambda t: t * float("nan"), lambda t: t * 1e38, lambda t: t.float().requires_grad_(),
    lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
)  # fmt: skip


def places_in(content, above=()):
    """List the paths to all members of nested containers."""
    pairs = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in pairs:
        yield (*above, key)
        yield from places_in(value, (*above, key))


@st.composite
def changed_contents(draw, contents):
    """The name of a checkpoint, and its content with one member replaced, renamed, taken out or computed anew."""
    name = draw(st.sampled_from(list(contents)))
    content = copy.deepcopy(contents[name])
    places = list(places_in(content))
    near = [place for place in places if len(place) <= 2]
    *above, key = draw(st.sampled_from(places) | st.sampled_from(near))
    parent = content
    for step in above:
        parent = parent[step]
    kind = draw(st.sampled_from(["replace", "remove", "rename", "compute"]))
    if kind == "compute" and isinstance(parent[key], torch.Tensor):
        try:
            parent[key] = draw(st.sampled_from(TENSORS))(parent[key])
        except (RuntimeError, IndexError, TypeError):
            assume(False)
    elif kind == "remove":
        del parent[key]
    elif kind == "rename" and isinstance(parent, dict):
        parent[draw(st.sampled_from(NAMES_OF_MEMBERS))] = parent.pop(key)
    else:
        parent[key] = draw(st.sampled_from(VALUES))
    return name, content


@pytest.mark.filterwarnings("ignore")
@examples(100, 1000)
def test_checkpoints_with_other_members_are_refused_or_used_as_they_are(files, number):
    contents = {name: torch.load(name, weights_only=True) for name in CHECKPOINT_COMMANDS}

    @hold(number, changed_contents(contents), st.data())
    def check(changed, data):
        name, content = changed
        shutil.rmtree("out", ignore_errors=True)
        torch.save(content, name)
        command = data.draw(st.sampled_from(CHECKPOINT_COMMANDS[name]))
        done = run(*COMMANDS[command], *(["--top-k", "99"] if command == "run" else []))
        if assert_refused_or_done(done) and command == "run":
            assert_right(
                json.loads(Path("out/influences.json").read_text(encoding="utf-8"))["results"],
                influences_of_content(content), conftest.TRAIN,
            )  # fmt: skip
        Path(name).write_bytes(files[name])


def influences_of_content(content):
    """What the influences are by the weights that a checkpoint holds, in float64 and by backward passes."""
    model = ConvE(**content["model_config"])
    model.load_state_dict(content["model_state_dict"], strict=True)
    model.double().eval()
    names = [name for name, _ in model.named_parameters()]
    test, train = (gradients_by_hand(model, triples, names) for triples in (conftest.TEST, conftest.TRAIN))
    return 0.001 * test @ train.T

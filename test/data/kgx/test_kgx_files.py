"""KGX files of every format: read to the same graph, or named with the remedy; through the command line."""

import bz2
import gzip
import io
import json
import lzma
import re
import tarfile
import zipfile
from pathlib import Path

import pytest
from command_lines import assert_refused, run

DATA = Path(__file__).parent
NODES, EDGES = DATA / "nodes.jsonl", DATA / "edges.jsonl"
SAMPLES = Path(__file__).resolve().parents[4] / "shared/data/kgx-samples"


def prepare(nodes, edges, out, *arguments):
    return run("prepare_data", "--nodes", nodes, "--edges", edges, "-o", out, *arguments)


def files_in(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def as_table(path):
    """Write the JSON lines of a file as a KGX table, `|` between several values."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns] + [
        ["|".join(value) if isinstance(value := row.get(name, ""), list) else str(value) for name in columns]
        for row in rows
    ]
    return "".join("\t".join(line) + "\n" for line in lines).encode()


def archive_of(members, mode="w:gz"):
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode=mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return written.getvalue()


def zip_of(name, content):
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        archive.writestr(name, content)
    return written.getvalue()


BOTH = {"graph/nodes.jsonl": NODES.read_bytes(), "graph/edges.jsonl": EDGES.read_bytes(), "graph/._nodes.jsonl": b"?"}
READ = {
    "tables": (as_table(NODES), as_table(EDGES)),
    "tables saved on Windows": tuple(
        b"\xef\xbb\xbf" + as_table(path).replace(b"\n", b"\r\n") for path in (NODES, EDGES)
    ),
    "compressed tables": (gzip.compress(as_table(NODES)), gzip.compress(as_table(EDGES))),
    "an archive of each": (
        archive_of({"any name": NODES.read_bytes()}), archive_of({"graph_edges.jsonl": EDGES.read_bytes()}, "w"),
    ),
    "one archive of both": (archive_of(BOTH), archive_of(BOTH)),
    "an archive of a table": (archive_of({"nodes.tsv": as_table(NODES)}), EDGES.read_bytes()),
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
def test_other_formats_give_the_same_graph(tmp_path, case):
    assert prepare(NODES, EDGES, tmp_path / "expected").code == 0
    for name, content in zip(("nodes", "edges"), READ[case], strict=True):
        (tmp_path / name).write_bytes(content)
    done = prepare(tmp_path / "nodes", tmp_path / "edges", tmp_path / "out")
    assert done.code == 0, done
    assert files_in(tmp_path / "out") == files_in(tmp_path / "expected")


NAMED = {
    "zip": (zip_of("x", NODES.read_bytes()), r": is a zip archive.*unzip"),
    "bzip2": (bz2.compress(NODES.read_bytes()), r": is compressed with bzip2; decompress it \(bunzip2\)"),
    "xz": (lzma.compress(NODES.read_bytes()), r": is compressed with xz; decompress it \(unxz\)"),
    "Zstandard": (b"\x28\xb5\x2f\xfd\x04\x00", r": is compressed with Zstandard; decompress it"),
    "7z": (b"7z\xbc\xaf\x27\x1c\x00\x04", r": is a 7z archive; unpack it"),
    "Parquet": (b"PAR1\x15\x04", r": is a Parquet table; save it as tab-separated text"),
    "commas": (b"id,name,category,subject,predicate,object\na,b,c,d,e,f\n", r": is comma-separated; save it with tabs"),
    "N-Triples": (b"<http://a> <http://b> <http://c> .\n", r": is RDF or XML; convert it to JSON lines"),
    "Turtle": (b"@prefix a: <http://a> .\n", r": is RDF or XML; convert it"),
    "one JSON document": (b'{"nodes": [', r": is one JSON document; convert it"),
    "a table of something else": (b"a\tb\nc\td\n", r":1: is not JSON, and as the header of a KGX table it lacks "),
    "a column twice": (b"id\tsubject\tpredicate\tname\tname\tobject\n", r"edges.*names a column twice|table of edges"),
    "an archive of several": (archive_of({"a": b"{}", "b": b"{}"}), r": holds 'a', 'b'; unpack the archive \(tar"),
}  # fmt: skip


@pytest.mark.parametrize("case", NAMED)
@pytest.mark.parametrize("kind", ["nodes", "edges"])
def test_formats_that_are_not_read_are_named_with_the_remedy(tmp_path, case, kind):
    content, expected = NAMED[case]
    path = tmp_path / kind
    path.write_bytes(content)
    paths = (path, EDGES) if kind == "nodes" else (NODES, path)
    message = assert_refused(prepare(*paths, tmp_path / "out", "--skip-malformed"))
    assert message.startswith(str(path))
    assert re.search(expected, message)
    assert "--skip" not in message


def test_broken_lines_of_a_table_are_named_or_counted(tmp_path):
    table = tmp_path / "edges.tsv"
    table.write_bytes(as_table(EDGES) + b"CHEBI:1\tbiolink:treats\n")
    message = assert_refused(prepare(NODES, table, tmp_path / "out"))
    assert message.startswith(f"{table}:156: has 2 columns, the header ")
    assert prepare(NODES, table, tmp_path / "out", "--skip-malformed").code == 0
    assert json.loads((tmp_path / "out/graph_summary.json").read_text())["dropped"]["malformed"] == 1


@pytest.mark.parametrize("name", ["triples.txt", "entity_to_id.tsv"])
def test_other_files_in_archives_are_named(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(archive_of({"train.txt": b"a\tb\tc\n"}))
    message = assert_refused(run("prepare_data", "--triples", path, "-o", tmp_path / "out"))
    assert message == f"{path}: is a tar archive; unpack it (tar -xf) and give the file in it"


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the project does not ship Monarch's sample")
def test_monarchs_sample(tmp_path):
    edges = SAMPLES / "monarch-tiny_edges.tsv"
    header, *rows = [line.split("\t") for line in edges.read_text(encoding="utf-8").split("\n")[:-1]]
    ends = sorted({row[header.index(end)] for row in rows for end in ("subject", "object")})
    nodes = tmp_path / "nodes.tsv"
    nodes.write_text("id\tcategory\n" + "".join(f"{end}\tbiolink:NamedThing\n" for end in ends), encoding="utf-8")
    done = prepare(nodes, edges, tmp_path / "out", "--test-fraction", "0.02", "--valid-fraction", "0.02")
    assert done.code == 0, done
    summary = json.loads((tmp_path / "out/graph_summary.json").read_text())
    column = {name: [row[header.index(name)] for row in rows] for name in header}
    negated = [value.lower() == "true" for value in column["negated"]]
    assert summary["dropped"]["negated"] == sum(negated)
    kept = [place for place, is_negated in enumerate(negated) if not is_negated]
    assert summary["edges"]["read"] == len(kept)
    for name in header:
        filled = sum(bool(column[name][place]) for place in kept)
        if "qualifier" in name and filled:
            assert summary["not_read"][name] == filled

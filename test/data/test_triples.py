"""Reading and writing of triples, mappings, names and predicates; grouping by query."""

import csv
import gzip
import json
import logging

import numpy as np
import pytest

from conve_tracin.data import text as text_module
from conve_tracin.data.keys import digest_of_triples
from conve_tracin.data.names import read_names, read_predicates
from conve_tracin.data.queries import group_by_query, with_inverse_triples
from conve_tracin.data.resolve import read_test_triples, resolve_triple
from conve_tracin.data.triples import read_triples, write_triples
from conve_tracin.data.vocabulary import Vocabulary, read_vocabulary, write_vocabulary
from conve_tracin.errors import InputError

ENTITIES = Vocabulary("entity", ["aspirin", "heart attack", 'the "big" one', "ß-Carotin", "NA", "null"])
RELATIONS = Vocabulary("relation", ["treats", "is a"])

LABEL_TRIPLES = [
    ("aspirin", "treats", "heart attack"),
    ('the "big" one', "is a", "heart attack"),
    ("ß-Carotin", "treats", "NA"),
    ("null", "is a", "aspirin"),
]
ID_TRIPLES = [[0, 0, 1], [2, 1, 1], [3, 0, 4], [5, 1, 0]]
TEXT = "".join("\t".join(triple) + "\n" for triple in LABEL_TRIPLES)


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def error_of(function, *arguments, **keywords):
    with pytest.raises(InputError) as caught:
        function(*arguments, **keywords)
    message = str(caught.value)
    assert "\n" not in message
    return message


class TestReadTriples:
    @pytest.mark.parametrize(
        "content",
        [
            TEXT.encode(),
            TEXT.removesuffix("\n").encode(),
            TEXT.replace("\n", "\r\n").encode(),
            TEXT.replace("\n", "\r\n").removesuffix("\r\n").encode(),
            TEXT.replace("\n", "\r\n", 2).encode(),
            b"\xef\xbb\xbf" + TEXT.encode(),
            gzip.compress(TEXT.encode()),
            gzip.compress(b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode()),
        ],
        ids=["lf", "no-last-lf", "crlf", "no-last-crlf", "mixed", "bom", "gz", "gz-bom-crlf"],
    )
    def test_encodings_and_line_ends(self, tmp_path, content):
        path = tmp_path / "train.txt"
        path.write_bytes(content)
        read = read_triples(path, ENTITIES, RELATIONS)
        assert read.dtype == np.int64
        assert read.tolist() == ID_TRIPLES

    @pytest.mark.parametrize("name", ["triples.txt", "triples.txt.gz"])
    def test_written_triples_are_read_back(self, tmp_path, name):
        # Characters at which Python's or pandas' own line splitting would break a label.
        labels = ["a b", " lead", "trail ", '"', "'", "x\x0by", "x\x1cy", "x\x85y", "x\u2028y", "#", "\\", "1"]
        vocabulary = Vocabulary("entity", labels)
        ids = np.random.default_rng(0).integers(0, len(labels), size=(200, 3))
        ids[:, 1] %= len(RELATIONS)
        write_triples(tmp_path / "plain", [(labels[h], RELATIONS.labels[r], labels[t]) for h, r, t in ids.tolist()])
        content = (tmp_path / "plain").read_bytes()
        path = tmp_path / name
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        np.testing.assert_array_equal(read_triples(path, vocabulary, RELATIONS), ids)

    @pytest.mark.parametrize("block_bytes", [48, 64, 1000])
    def test_blocks_do_not_show(self, tmp_path, monkeypatch, block_bytes):
        rng = np.random.default_rng(1)
        ids = np.stack([rng.integers(0, n, size=300) for n in (6, 2, 6)], axis=1)
        labels = [(ENTITIES.labels[h], RELATIONS.labels[r], ENTITIES.labels[t]) for h, r, t in ids.tolist()]
        write_triples(tmp_path / "t.txt", labels)
        monkeypatch.setattr(text_module, "BLOCK_BYTES", block_bytes)
        np.testing.assert_array_equal(read_triples(tmp_path / "t.txt", ENTITIES, RELATIONS), ids)
        lines = (tmp_path / "t.txt").read_text(encoding="utf-8").split("\n")
        lines[210] = "aspirin\ttreats\taspirine"
        write(tmp_path / "t.txt", "\n".join(lines))
        assert ":211: unknown entity 'aspirine' (tail)" in error_of(
            read_triples, tmp_path / "t.txt", ENTITIES, RELATIONS
        )

    @pytest.mark.parametrize(
        ("line", "expected"),
        [
            ("aspirin\ttreats", "2 columns instead of 3"),
            ("aspirin\ttreats\tNA\tnull", "4 columns instead of 3"),
            ("aspirin\ttreats\tNA\t", "delete the tab at the end"),
            ("aspirin treats NA", "separated by a tab"),
            ("", "the line is empty"),
            ("aspirin\t\tNA", "column 2 is empty"),
            ("\ttreats\tNA", "column 1 is empty"),
            ("aspirin\ttreats\t", "column 3 is empty"),
            (
                "Aspirin\ttreats\tNA",
                "unknown entity 'Aspirin' (head), the entity mapping lacks it; did you mean 'aspirin'?",
            ),
            ("aspirin\tcures\tNA", "unknown relation 'cures' (relation)"),
            ("aspirin\ttreats\tNaN", "unknown entity 'NaN' (tail)"),
            ("0\ttreats\tNA", "labels, not ids"),
        ],
    )
    @pytest.mark.parametrize("before", [0, 2])
    @pytest.mark.parametrize("after", [0, 2])
    def test_malformed_line(self, tmp_path, line, expected, before, after):
        path = write(tmp_path / "t.txt", TEXT * before + line + "\n" + TEXT * after)
        number = len(LABEL_TRIPLES) * before + 1
        message = error_of(read_triples, path, ENTITIES, RELATIONS)
        assert message.startswith(f"{path}:{number}: ")
        assert expected in message

    def test_shifted_columns_that_add_up(self, tmp_path):
        path = write(tmp_path / "t.txt", "aspirin\ttreats\tNA\tnull\naspirin\ttreats\n")
        assert error_of(read_triples, path, ENTITIES, RELATIONS).startswith(f"{path}:1: 4 columns")

    def test_first_bad_line_wins(self, tmp_path):
        path = write(tmp_path / "t.txt", TEXT + "x\ttreats\tNA\n" + TEXT + "broken\n")
        assert error_of(read_triples, path, ENTITIES, RELATIONS).startswith(f"{path}:5: unknown entity 'x'")
        path = write(tmp_path / "t.txt", TEXT + "broken\n" + TEXT + "x\ttreats\tNA\n")
        assert error_of(read_triples, path, ENTITIES, RELATIONS).startswith(f"{path}:5: 1 column ")

    def test_header_is_pointed_out(self, tmp_path):
        path = write(tmp_path / "t.txt", "head\trelation\ttail\n" + TEXT)
        assert "no header" in error_of(read_triples, path, ENTITIES, RELATIONS)

    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            (b"", ": is empty"),
            (b"\xef\xbb\xbf", ": is empty"),
            (gzip.compress(b"", mtime=0), ": is empty"),
            (b"\n", ":1: the line is empty"),
            (b"a\n", ":1: 1 column "),
            (TEXT.encode("utf-16"), ": is UTF-16"),
            (TEXT.encode("utf-16-le"), ":1: holds a NUL byte"),
            (TEXT.encode("latin-1"), ":3: is not UTF-8 (byte 0xdf)"),
            (TEXT.encode() + b"a\tb\0c\td\n", ":5: holds a NUL byte"),
            (gzip.compress(TEXT.encode(), mtime=0)[:-12], ": is a damaged gzip file"),
            (TEXT.replace("\n", "\r").encode(), ":1: lines end in a bare CR"),
        ],
    )
    def test_unreadable_content(self, tmp_path, content, expected):
        path = tmp_path / "t.txt"
        path.write_bytes(content)
        assert error_of(read_triples, path, ENTITIES, RELATIONS).startswith(f"{path}{expected}")

    def test_endless_line(self, tmp_path, monkeypatch):
        monkeypatch.setattr(text_module, "BLOCK_BYTES", 100)
        path = write(tmp_path / "t.txt", TEXT + "x" * 1000)
        assert error_of(read_triples, path, ENTITIES, RELATIONS).startswith(f"{path}:5: no line end")

    def test_missing_file_and_directory(self, tmp_path):
        assert "no such file" in error_of(read_triples, tmp_path / "none.txt", ENTITIES, RELATIONS)
        assert "cannot be read" in error_of(read_triples, tmp_path, ENTITIES, RELATIONS)

    def test_skip_unknown(self, tmp_path, caplog):
        unknown = "".join(f"u{number}\ttreats\tu{number}\nu{number}\tcauses\tNA\n" for number in range(5))
        path = write(tmp_path / "t.txt", TEXT + unknown + TEXT)
        with caplog.at_level(logging.WARNING):
            read = read_triples(path, ENTITIES, RELATIONS, skip_unknown=True)
        assert read.tolist() == ID_TRIPLES * 2
        (record,) = caplog.records
        assert record.name == "conve_tracin.data.triples"
        assert "10 of 18 triples" in record.getMessage()
        assert "(first: 'u0', 'causes', 'u1', 'u2', 'u3')" in record.getMessage()

    def test_skip_unknown_is_silent_when_all_is_known(self, tmp_path, caplog):
        path = write(tmp_path / "t.txt", TEXT)
        assert read_triples(path, ENTITIES, RELATIONS, skip_unknown=True).tolist() == ID_TRIPLES
        assert not caplog.records

    def test_skip_unknown_still_refuses_malformed_lines_and_nothing_left(self, tmp_path):
        path = write(tmp_path / "t.txt", "u\ttreats\tv\naspirin\ttreats\n")
        assert ":2: 2 columns" in error_of(read_triples, path, ENTITIES, RELATIONS, skip_unknown=True)
        path = write(tmp_path / "t.txt", "u\ttreats\tv\n")
        assert "none is left" in error_of(read_triples, path, ENTITIES, RELATIONS, skip_unknown=True)

    @pytest.mark.parametrize("label", ["", "a\tb", "a\nb", "a\r"])
    def test_labels_that_cannot_be_written(self, tmp_path, label):
        for write_it in (
            lambda path: write_triples(path, [("a", "r", label)]),
            lambda path: write_vocabulary(path, ["a", label]),
        ):
            assert "rename it" in error_of(write_it, tmp_path / "out.txt")
            assert list(tmp_path.iterdir()) == []


class TestReadVocabulary:
    LABELS = ("aspirin", "heart attack", 'the "big" one', '"quoted"', "ß-Carotin", "NA", "12")

    def native(self):
        return "".join(f"{label}\t{position}\n" for position, label in enumerate(self.LABELS))

    def test_written_vocabulary_is_read_back(self, tmp_path):
        write_vocabulary(tmp_path / "e.tsv", self.LABELS)
        vocabulary = read_vocabulary(tmp_path / "e.tsv", "entity")
        assert vocabulary.labels == self.LABELS
        assert vocabulary.path == tmp_path / "e.tsv"
        assert [vocabulary.id_of(label) for label in self.LABELS] == list(range(7))
        assert [vocabulary.label_of(position) for position in range(7)] == list(self.LABELS)

    def test_any_order_crlf_bom_gz(self, tmp_path):
        lines = self.native().splitlines()[::-1]
        path = tmp_path / "e.tsv.gz"
        path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + "\r\n".join(lines).encode()))
        assert read_vocabulary(path, "entity").labels == self.LABELS

    def test_openke(self, tmp_path):
        path = write(tmp_path / "entity2id.txt", f"{len(self.LABELS)}\r\n" + self.native())
        assert read_vocabulary(path, "entity").labels == self.LABELS
        path = write(tmp_path / "entity2id.txt", f"{len(self.LABELS) + 1}\n" + self.native())
        assert error_of(read_vocabulary, path, "entity").startswith(f"{path}:1: the first line announces 8 labels, 7")
        path = write(tmp_path / "entity2id.txt", "1\na\t1\n")
        assert error_of(read_vocabulary, path, "entity").startswith(f"{path}:2: id 1 is outside 0 to 0")
        path = write(tmp_path / "entity2id.txt", "0\n")
        assert "holds no entity" in error_of(read_vocabulary, path, "entity")

    @pytest.mark.parametrize("header", [["id", "label"], ["label", "id"]])
    def test_pykeen_export(self, tmp_path, header):
        path = tmp_path / "entity_to_id.tsv.gz"
        with gzip.open(path, "wt", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, header, delimiter="\t", lineterminator="\n")
            writer.writeheader()
            writer.writerows({"id": position, "label": label} for position, label in enumerate(self.LABELS))
        assert read_vocabulary(path, "entity").labels == self.LABELS

    def test_pykeen_writes_what_is_read(self, tmp_path):
        pykeen_triples = pytest.importorskip("pykeen.triples")
        factory = pykeen_triples.TriplesFactory.from_labeled_triples(np.array(LABEL_TRIPLES))
        factory.to_path_binary(tmp_path)
        vocabulary = read_vocabulary(tmp_path / "entity_to_id.tsv.gz", "entity")
        assert vocabulary.index == factory.entity_to_id
        assert read_vocabulary(tmp_path / "relation_to_id.tsv.gz", "relation").index == factory.relation_to_id

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("a\t0\nb\t0\n", ":2: id 0 is taken by 'a' (line 1)"),
            ("a\t0\na\t1\n", ":2: label 'a' occurs a second time (first on line 1)"),
            ("a\t0\nb\t2\n", ":2: id 2 is outside 0 to 1"),
            ("a\t1\nb\t2\n", ":2: id 2 is outside 0 to 1"),
            ("a\t0\nb\t-1\n", ":2: id -1 is outside"),
            ("a\t0\nb\t" + "9" * 5000 + "\n", ":2: id 999"),
            ("a\t0\nb\t1.0\n", ":2: '1.0' is not an integer id"),
            ("a\t0\nb\t1_0\n", ":2: '1_0' is not an integer id"),
            ("a\t0\nb\t\n", ":2: column 2 is empty"),
            ("a\t0\n\t1\n", ":2: column 1 is empty"),
            ("a\t0\nb\n", ":2: 1 column instead of 2"),
            ("a\t0\nb c\t1\tx\n", ":2: 3 columns instead of 2"),
            ("a\t0\n\nb\t1\n", ":2: the line is empty"),
            ("a\t0\nb\t1\t\n", ":2: 3 columns instead of 2; delete the tab"),
            ("0\ta\n1\tb\n", ":1: the columns are the wrong way round"),
            ("entity\tnumber\na\t0\n", ":1: 'number' is not an integer id; delete the line if it is a header"),
            ("id\tlabel\n", ": holds no entity"),
            ("id\tlabel\n0\ta\n1\ta\n", ":3: label 'a' occurs a second time (first on line 2)"),
            ('id\tlabel\n0\t"a\n1\tb"\n', ":2: a quoted label goes over several lines"),
            ('id\tlabel\n0\t"a" b\n', ":2: "),
            ("", ": is empty"),
        ],
    )
    def test_malformed(self, tmp_path, text, expected):
        path = write(tmp_path / "e.tsv", text)
        assert error_of(read_vocabulary, path, "entity").startswith(f"{path}{expected}")

    def test_missing_or_utf16(self, tmp_path):
        assert "no such file" in error_of(read_vocabulary, tmp_path / "e.tsv", "entity")
        path = write(tmp_path / "e.tsv", "a\t0\n", encoding="utf-16")
        assert "is UTF-16" in error_of(read_vocabulary, path, "entity")

    def test_digest_depends_on_labels_and_their_order_alone(self, tmp_path):
        path = write(tmp_path / "e.tsv", "b\t1\na\t0\n")
        digest = Vocabulary("entity", ["a", "b"]).digest()
        assert read_vocabulary(path, "relation").digest() == digest
        assert len(digest) == 64
        others = {Vocabulary("entity", labels).digest() for labels in (["b", "a"], ["ab"], ["a"], ["a", "b", ""])}
        assert digest not in others
        assert len(others) == 4

    def test_labels_out_of_range(self):
        for position in (-1, len(ENTITIES)):
            assert "ids 0 to 5" in error_of(ENTITIES.label_of, position)

    def test_suggestions(self):
        labels = [f"MONDO:{number:07d}" for number in range(5000)]
        vocabulary = Vocabulary("entity", labels)
        assert "did you mean 'MONDO:0004148'?" in error_of(vocabulary.id_of, "mondo_0004148")
        assert "'MONDO:0004148'" in error_of(vocabulary.id_of, "MOND:0004148")
        assert "did you mean" not in error_of(vocabulary.id_of, "completely different")


class TestResolveTriple:
    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            (["1", "0", "4"], (1, 0, 4)),
            ([1, 0, np.int64(4)], (1, 0, 4)),
            (["heart attack", "treats", "NA"], (1, 0, 4)),
            (["1", "treats", "NA"], (1, 0, 4)),
            (["heart attack", "0", "4"], (1, 0, 4)),
            # The last column of a file with Windows line ends, read by a shell.
            (["heart attack", "treats", "NA\r"], (1, 0, 4)),
        ],
    )
    def test_ids_and_labels(self, values, expected):
        assert resolve_triple(values, ENTITIES, RELATIONS) == expected

    def test_labels_that_look_like_numbers(self):
        entities = Vocabulary("entity", ["14854262", "00000001", "0", "other"])
        assert resolve_triple(["14854262", "treats", "00000001"], entities, RELATIONS) == (0, 0, 1)
        # By its label the first is the entity 2.
        assert "add --ids or --labels" in error_of(resolve_triple, ["0", "treats", "3"], entities, RELATIONS)
        assert resolve_triple(["0", "0", "3"], entities, RELATIONS) == (0, 0, 3)
        assert resolve_triple(["00000001", "0", "3"], entities, RELATIONS) == (1, 0, 3)
        assert "has the id 0)" in error_of(resolve_triple, ["14854262", "0", "1"], entities, RELATIONS)

    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            (["6", "0", "0"], "head: entity id 6 is out of range; the entity mapping has ids 0 to 5"),
            (["0", "2", "0"], "relation: relation id 2 is out of range"),
            (["0", "0", "-1"], "tail: entity id -1 is out of range"),
            (["0", "0", "9" * 5000], "tail: entity id 999"),
            (
                ["Aspirin", "0", "0"],
                "head: unknown entity 'Aspirin', the entity mapping lacks it; did you mean 'aspirin'?",
            ),
            (
                ["0", "treat", "0"],
                "relation: unknown relation 'treat', the relation mapping lacks it; did you mean 'treats'?",
            ),
            (["0", "0", "0.5"], "tail: unknown entity '0.5'"),
            (["0", "0"], "a triple is head, relation and tail, got 2 values"),
        ],
    )
    def test_errors(self, values, expected):
        assert error_of(resolve_triple, values, ENTITIES, RELATIONS).startswith(expected)

    def test_file(self, tmp_path):
        path = write(tmp_path / "t.txt", "0 0 1\r\naspirin  treats NA\nheart attack\tis a\t3\n")
        read = read_test_triples(path, ENTITIES, RELATIONS)
        assert read.tolist() == [[0, 0, 1], [0, 0, 4], [1, 1, 3]]
        assert read.dtype == np.int64

    def test_table(self, tmp_path):
        text = "rank\ttail\thead\tscore\trelation\r\n1\tNA\taspirin\t\ttreats\r\n2\taspirin\theart attack\t\tis a\r\n"
        read = read_test_triples(write(tmp_path / "t.tsv", text), ENTITIES, RELATIONS)
        assert read.tolist() == [[0, 0, 4], [1, 1, 0]]
        numbers = Vocabulary("entity", ("2", "1", "0"))
        path = write(tmp_path / "numbers.tsv", "head\trelation\ttail\tscore\n2\t1\t1\t0\n")
        assert read_test_triples(path, numbers, numbers).tolist() == [[0, 1, 1]]

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("", ": has no line below the names"),
            ("aspirin\ttreats\tNA\n", ":2: 3 columns instead of 4"),
            ("aspirin\ttreats\tNA\t\naspirin\tcures\tNA\t\n", ":3: relation: unknown relation 'cures'"),
        ],
    )
    def test_malformed_table(self, tmp_path, text, expected):
        path = write(tmp_path / "t.tsv", f"head\trelation\ttail\tscore\n{text}")
        assert error_of(read_test_triples, path, ENTITIES, RELATIONS).startswith(f"{path}{expected}")

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("0 0 1\n0 0\n", ":2: 2 columns instead of 3"),
            ("0 0 1\n\n", ":2: the line is empty"),
            ("0 0 1\n   \n", ":2: 1 column instead"),
            ("0 0 1\n0\t0\t\n", ":2: column 3 is empty"),
            ("0 0 1\nheart attack treats NA\n", ":2: 4 columns"),
            ("0 0 1\n0 0 17\n", ":2: tail: entity id 17 is out of range"),
            ("0 0 1\n0 cures 1\n", ":2: relation: unknown relation 'cures'"),
            ("", ": is empty"),
        ],
    )
    def test_malformed_file(self, tmp_path, text, expected):
        path = write(tmp_path / "t.txt", text)
        assert error_of(read_test_triples, path, ENTITIES, RELATIONS).startswith(f"{path}{expected}")


class TestNamesAndPredicates:
    def test_names_by_id(self, tmp_path):
        path = write(tmp_path / "names.txt", "Aspirin\t0\nHerzinfarkt (größer)\t1\n\t2\nAspirin\t0\n")
        expected = {0: "Aspirin", 1: "Herzinfarkt (größer)"}
        assert read_names(path) == expected
        assert read_names(path, ENTITIES) == expected

    def test_names_by_label(self, tmp_path, caplog):
        path = write(tmp_path / "names.txt", "Acetylsalicylic acid\taspirin\nNot here\tibuprofen\nMissing\tNA\n")
        assert read_names(path, ENTITIES) == {0: "Acetylsalicylic acid", 4: "Missing"}
        assert "1 of 3 names" in caplog.text

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("a\t0\nb\t0\n", ":2: a second name, 'b', for 0"),
            ("a\t0\nb\t6\n", ":2: id 6 is out of range"),
            ("a\t0\nb\t-1\n", ":2: id -1 is out of range"),
            ("a\t0\nb\n", ":2: 1 column instead of 2"),
            ("a\t0\nb\t\n", ":2: column 2 is empty"),
            ("a\tx\nb\ty\n", ": none of its ids is in"),
            ("", ": is empty"),
        ],
    )
    def test_malformed_names(self, tmp_path, text, expected):
        path = write(tmp_path / "names.txt", text)
        assert error_of(read_names, path, ENTITIES).startswith(f"{path}{expected}")

    def test_labels_need_a_vocabulary(self, tmp_path):
        path = write(tmp_path / "names.txt", "a\t0\nb\taspirin\n")
        assert error_of(read_names, path).startswith(f"{path}:2: 'aspirin' is not an integer id")

    def test_predicates(self, tmp_path):
        edge_map = {
            json.dumps({"predicate": "biolink:treats"}): "predicate:27",
            json.dumps({"object_aspect_qualifier": "activity", "predicate": "biolink:affects"}): "predicate:3",
        }
        path = write(tmp_path / "edge_map.json", json.dumps(edge_map, indent=1))
        assert read_predicates(path) == {
            "predicate:27": "biolink:treats",
            "predicate:3": "biolink:affects (object activity)",
        }

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ('{"a":\n}', ":2: is not valid JSON"),
            ("[]", ": is not a JSON object"),
            ('{"treats": "predicate:1"}', ": the key 'treats' is not JSON"),
            ('{"{}": "predicate:1"}', ": the key '{}' is not JSON with a \"predicate\""),
            ('{"[1]": "predicate:1"}', ": the key '[1]' is not"),
            ('{"{\\"predicate\\": \\"a\\"}": 3}', ": the value of"),
            (
                '{"{\\"predicate\\": \\"a\\"}": "p", "{\\"predicate\\": \\"b\\"}": "p"}',
                ": 'p' stands for both 'a' and 'b'",
            ),
            ("[" * 100_000, ": is nested too deeply"),
        ],
    )
    def test_malformed_predicates(self, tmp_path, text, expected):
        path = write(tmp_path / "edge_map.json", text)
        assert error_of(read_predicates, path).startswith(f"{path}{expected}")


class TestQueries:
    @pytest.mark.parametrize("count", [0, 1, 500])
    def test_grouping_equals_a_dictionary(self, count):
        rng = np.random.default_rng(count)
        triples = np.stack([rng.integers(0, n, size=count) for n in (20, 4, 20)], axis=1)
        expected: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for row, (head, relation, tail) in enumerate(triples.tolist()):
            expected.setdefault((head, relation), []).append((row, tail))

        grouped = group_by_query(triples)
        assert [tuple(query) for query in grouped.queries.tolist()] == sorted(expected)
        assert len(grouped.offsets) == len(expected) + 1
        for query, start, end in zip(grouped.queries.tolist(), grouped.offsets[:-1], grouped.offsets[1:], strict=True):
            members = zip(grouped.order[start:end].tolist(), grouped.tails[start:end].tolist(), strict=True)
            assert list(members) == expected[tuple(query)]
        assert all(
            array.dtype == np.int64 for array in (grouped.queries, grouped.offsets, grouped.tails, grouped.order)
        )
        assert grouped.offsets[-1] == count

    def test_inverse_triples(self):
        triples = np.array([[0, 0, 1], [2, 3, 2]])
        expected = [[0, 0, 1], [2, 6, 2], [1, 1, 0], [2, 7, 2]]
        assert with_inverse_triples(triples).tolist() == expected
        assert with_inverse_triples(np.empty((0, 3), dtype=np.int64)).shape == (0, 3)


def test_the_digest_of_triples_is_that_of_the_collection():
    triples = np.random.default_rng(0).integers(0, (40, 5, 40), (500, 3))
    digest = digest_of_triples(triples)
    assert digest_of_triples(triples[::-1]) == digest
    assert digest_of_triples(triples.tolist()) == digest
    assert digest_of_triples(np.concatenate([triples, triples[:9]])) == digest
    swapped = triples.copy()
    swapped[7] = swapped[7, ::-1]
    exchanged = triples.copy()
    exchanged[[3, 4], 2] = exchanged[[4, 3], 2]
    assert swapped[7].tolist() != triples[7].tolist()
    assert sorted(exchanged.tolist()) != sorted(triples.tolist())
    others = [digest_of_triples(other) for other in (triples[1:], swapped, exchanged, triples[:, ::-1], [])]
    assert len({digest, *others}) == 6

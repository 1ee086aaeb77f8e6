"""Bad input through the command lines: one clear line and nothing written, or the results of the clean files.

Every case spoils one thing in a directory that holds a whole small project, and runs a script in it.
"""

import csv
import gzip
import json
import os
import re
import shutil
import sys
from pathlib import Path

import conftest
import numpy as np
import pytest
import torch
from command_lines import assert_refused, contents_below, run
from project_files import (
    COMMANDS,
    MAPPINGS,
    NAMES,
    assert_right,
    clean,  # noqa: F401
    influences_by_hand,
    project,  # noqa: F401
    write,
    write_graph,
)

# ---------------------------------------------------------------------------------------------------------------
# Ways to spoil a file


def content(name, new):
    """Replace a file's content."""
    return lambda: Path(name).write_bytes(new if isinstance(new, bytes) else new.encode())


def added(name, text):
    """Put lines at the end."""
    return lambda: Path(name).write_bytes(Path(name).read_bytes() + text.encode())


def edited(name, change):
    """Change a file's bytes by a function."""
    return lambda: Path(name).write_bytes(change(Path(name).read_bytes()))


def line_edited(name, number, new):
    """Replace a line, counted from 1."""

    def change(old):
        lines = old.decode().split("\n")
        lines[number - 1] = new
        return "\n".join(lines).encode()

    return edited(name, change)


def reencoded(name, encoding):
    return edited(name, lambda old: old.decode().encode(encoding))


def swapped_labels(name):
    """Give two labels each other's ids: another graph's mapping, of the same size."""

    def change(old):
        labels = [line.split("\t")[0] for line in old.decode().splitlines()]
        labels[0], labels[1] = labels[1], labels[0]
        return "".join(conftest.mapping_lines(labels)).encode()

    return edited(name, change)


def stored(name, change):
    """Load a checkpoint, change what it holds, and save it again."""

    def spoil():
        loaded = torch.load(name, weights_only=True)
        torch.save(change(loaded) or loaded, name)

    return spoil


def weight(name, change):
    """Change one weight of model.pt."""

    def change_content(loaded):
        state = loaded["model_state_dict"]
        state[name] = change(state[name])

    return stored("model.pt", change_content)


def without_weight(name, weight_name):
    """Take a weight out of a checkpoint."""

    def change(loaded):
        del loaded["model_state_dict"][weight_name]

    return stored(name, change)


def with_value(value):
    """Put a value into the middle of a tensor."""

    def change(tensor):
        tensor.view(-1)[tensor.numel() // 2] = value
        return tensor

    return change


def member(*names, value):
    """Set a member of model.pt, at any depth."""

    def change(loaded):
        for name in names[:-1]:
            loaded = loaded[name]
        loaded[names[-1]] = value

    return stored("model.pt", change)


def bit_flipped(name):
    """Flip one bit of a weight on the disk, behind the back of torch.save."""

    def change(old):
        start = old.index(torch.load(name, weights_only=True)["model_state_dict"]["fc.weight"].numpy().tobytes())
        return old[: start + 42] + bytes([old[start + 42] ^ 8]) + old[start + 43 :]

    return edited(name, change)


def pykeen_weights_of_another_model():
    torch.save({"entity_representations.0._embeddings.weight": torch.ones(6, 12)}, "converted.pt")


def last_with(change, name="model.pt"):
    """Save a checkpoint with other members as other.pt, and break the weights of model.pt, which come first."""

    def spoil():
        loaded = torch.load(name, weights_only=True)
        torch.save(loaded | change(loaded), "other.pt")
        weight("fc.bias", with_value(np.nan))()

    return spoil


def of_another_mapping(loaded):
    return {"mapping_digest": loaded["mapping_digest"] | {"entity": "0" * 64}}


def digest_flipped(name):
    """Save model.pt under another name, with one digit changed on the disk in what it says of its entities."""
    digest = torch.load("model.pt", weights_only=True)["mapping_digest"]["entity"].encode()
    other = (b"0" if digest[:1] != b"0" else b"1") + digest[1:]
    Path(name).write_bytes(Path("model.pt").read_bytes().replace(digest, other))


def nothing():
    """Spoil no file: the settings are the case."""


# ---------------------------------------------------------------------------------------------------------------
# Refused: (case, command, what is spoiled, what the one line must say, further arguments)

LONG = "x" * 10 * 2**20
CONFIG, STATE, TRAINED = "model_config", "model_state_dict", "training_config"

REFUSED = {
    # Triples
    "an empty training file": ("train", content("train.tsv", b""), r"^train\.tsv: is empty; give a file with"),
    "an empty validation file": ("train", content("valid.tsv", b""), r"^valid\.tsv: is empty; give a file with"),
    "an empty test file": ("train", content("test.tsv", b""), r"^test\.tsv: is empty; give a file with"),
    "an empty gzip file": ("train", content("train.tsv", gzip.compress(b"")), r"^train\.tsv: is empty; give"),
    "empty triples to prepare": ("prepare", content("valid.tsv", b""), r"^valid\.tsv: is empty; give a file with"),
    "empty triples to trace": ("tracin", content("train.tsv", b""), r"^train\.tsv: is empty; give a file with"),
    "empty test triples to trace": ("run", content("test.tsv", b""), r"^test\.tsv: is empty; give a file with"),
    "an empty list": ("tracin many", content("listed.txt", b""), r"^listed\.txt: is empty; give a file with"),
    "two columns": (
        "prepare", added("valid.tsv", "aspirin\ttreats\n"), r"^valid\.tsv:3: 2 columns instead of 3; a line",
    ),
    "four columns": ("run", added("test.tsv", "a\tb\tc\td\n"), r"^test\.tsv:4: 4 columns instead of 3; a line is"),
    "blanks for tabs": (
        "run", added("train.tsv", "aspirin treats x\n"), r"^train\.tsv:12: 1 column .*separated by a tab",
    ),
    "two columns in a list": ("run listed", added("listed.txt", "1 2\n"), r"^listed\.txt:3: 2 columns instead of 3; "),
    "an empty line": ("tracin", added("train.tsv", "\n"), r"^train\.tsv:12: the line is empty; delete it"),
    "a header": (
        "run", line_edited("test.tsv", 1, "head\trelation\ttail"), r"^test\.tsv:1: .*no header, delete the line",
    ),
    "binary junk to prepare": (
        "prepare one file", content("train.tsv", bytes(range(256)) * 8), r"^train\.tsv:1: .*NUL byte",
    ),
    "binary junk to train": ("train", content("valid.tsv", bytes(range(128, 256)) * 8), r"^valid\.tsv:1: is not UTF-8"),
    "a checkpoint for triples": (
        "run", lambda: shutil.copy("model.pt", "test.tsv"), r"^test\.tsv: is a zip archive, as checkpoints are; give a",
    ),
    "UTF-16 to prepare": (
        "prepare", reencoded("test.tsv", "utf-16"), r"^test\.tsv: is UTF-16; save it as UTF-8 \(iconv",
    ),
    "UTF-16 to train": ("train", reencoded("train.tsv", "utf-16"), r"^train\.tsv: is UTF-16; save it as UTF-8 \(iconv"),
    "UTF-16 to trace": (
        "tracin", reencoded("train.tsv", "utf-16"), r"^train\.tsv: is UTF-16; save it as UTF-8 \(iconv",
    ),
    "a list in UTF-16": (
        "tracin many", reencoded("listed.txt", "utf-16"), r"^listed\.txt: is UTF-16; save it as UTF-8",
    ),
    "latin-1": (
        "train", reencoded("train.tsv", "latin-1"), r"^train\.tsv:2: is not UTF-8 \(byte 0xe8\); save the file",
    ),
    "a gzip file cut off": (
        "train", edited("train.tsv", lambda old: gzip.compress(old)[:-9]), r"^train\.tsv: is a damaged gzip .*fetch or",
    ),
    "line ends of an old Mac": (
        "prepare", edited("train.tsv", lambda old: old.replace(b"\n", b"\r")), r"^train\.tsv:1: .*bare CR; convert",
    ),
    "a line of 10 MB": (
        "prepare", added("train.tsv", LONG + "\n"), r"^train\.tsv:12: 1 column instead of 3; columns are",
    ),
    "a label of 10 MB": (
        "run", added("train.tsv", f"{LONG}\ttreats\taspirin\n"),
        r"^train\.tsv:12: unknown entity 'x+'… \(10,485,760 char",
    ),
    "a label of 10 MB in a list": (
        "run listed", added("listed.txt", f"{LONG} treats aspirin\n"),
        r"^listed\.txt:3: head: unknown entity 'x+'… \(10",
    ),
    "a line that never ends": (
        "train", added("train.tsv", LONG * 4), r"^train\.tsv:12: no line end in [\d,]+ bytes; give",
    ),
    "an unknown entity": (
        "run", added("train.tsv", "Aspirin\ttreats\tPTGS2\n"),
        r"^train\.tsv:12: unknown entity 'Aspirin' .*mean 'aspirin'\?",
    ),
    "ids for labels": (
        "train", content("test.tsv", "0\t1\t2\n"), r"^test\.tsv:1: .*triples files hold labels, not ids",
    ),
    "triples that all are of another graph": (
        "train", content("test.tsv", "a\tb\tc\n"), r"^test\.tsv: 1 of 1 triples .*none is left; give the mappings",
        "--skip-unknown",
    ),
    "a directory for triples": (
        "run", nothing, r"^\.: cannot be read \(Is a directory\); give the name", "--train", ".",
    ),
    # Mappings
    "an empty mapping": (
        "train", content("relation_to_id.tsv", b""), r"^relation_to_id\.tsv: is empty; give a file with",
    ),
    "a mapping of junk": (
        "run", content("entity_to_id.tsv", os.urandom(64) + b"\xff\0"), r"^entity_to_id\.tsv:\d+: .*UTF-8",
    ),
    "a mapping in UTF-16": (
        "tracin", reencoded("entity_to_id.tsv", "utf-16"), r"^entity_to_id\.tsv: is UTF-16; save it",
    ),
    "an id twice": (
        "tracin", line_edited("entity_to_id.tsv", 3, "head ache\t1"),
        r"^entity_to_id\.tsv:3: id 1 is taken by 'ibuprofen' \(line 2\); give each label its own id",
    ),
    "a missing id": (
        "run", line_edited("entity_to_id.tsv", 6, "PTGS2\t6"),
        r"^entity_to_id\.tsv:6: id 6 is outside 0 to 5; .*no gaps",
    ),
    "a negative id": (
        "train", line_edited("entity_to_id.tsv", 6, "PTGS2\t-5"),
        r"^entity_to_id\.tsv:6: id -5 is outside 0 to 5; .*no gaps",
    ),
    "an id of 5,000 digits": (
        "run", line_edited("entity_to_id.tsv", 6, f"PTGS2\t{'9' * 5000}"),
        r"^entity_to_id\.tsv:6: id 9+… \(5,000 char.*no gaps",
    ),
    "an id that is no number": (
        "run", line_edited("relation_to_id.tsv", 2, "inhibits\t1.0"),
        r"^relation_to_id\.tsv:2: '1.0' is not an integer id; ",
    ),
    "columns the wrong way round": (
        "train", content("relation_to_id.tsv", "0\ttreats\n1\tinhibits\n2\tassociated with\n"),
        r"^relation_to_id\.tsv:1: the columns are the wrong way round; write label<TAB>id",
    ),
    "a label twice": (
        "run", line_edited("entity_to_id.tsv", 2, "aspirin\t1"),
        r"^entity_to_id\.tsv:2: label 'aspirin' occurs a second .*line 1",
    ),
    "a label with a line end": (
        "train", content("relation_to_id.tsv", 'id\tlabel\n0\t"tre\nats"\n'),
        r"^relation_to_id\.tsv:2: .*several lines; rename",
    ),
    "more labels than the model's table": (
        "run", added("entity_to_id.tsv", "one more\t6\n"),
        r"^entity_to_id\.tsv: has 7 labels, but model\.pt has 6 entity embeddings; use the entity mapping of its",
    ),
    "fewer relations than the model's table": (
        "run converted", lambda: (
            write("relation_to_id.tsv", "treats\t0\ninhibits\t1\n"),
            [write(name, "aspirin\ttreats\tPTGS2\n") for name in ("train.tsv", "test.tsv")],
        ),
        r"^converted\.pt: was trained with 3 relations, but 2 are given; use the relation mapping of its training",
    ),
    "the mapping of another graph": (
        "tracin", swapped_labels("entity_to_id.tsv"),
        r"^model\.pt: was trained with another entity mapping .*use the entity",
    ),
    "the mapping of another graph for a converted model": (
        "run converted", swapped_labels("relation_to_id.tsv"),
        r"^converted\.pt: was trained with another relation mapping .*use the relation",
    ),
    "the mapping of another graph on resuming": (
        "resume", swapped_labels("entity_to_id.tsv"),
        r"^model\.pt: was trained with another entity mapping .*use the entity",
    ),
    "only one mapping": (
        "run", nothing, r"--entity-to-id and --relation-to-id go together; give both",
    ),
    # Names
    "names of ids that are too high": (
        "run", added("names.txt", "x\t6\n"), r"^names\.txt:3: id 6 is out of range; entity ids are .*names of this",
    ),
    "names of negative ids": (
        "tracin", added("names.txt", "x\t-1\n"),
        r"^names\.txt:3: id -1 is out of range; entity ids are .*names of this",
    ),
    "two names": ("run", added("names.txt", "x\t0\n"), r"^names\.txt:3: a second name, 'x', for 0 .*keep one of them"),
    "names of another graph": (
        "run", content("names.txt", "x\tMONDO:1\n"), r"^names\.txt: none of its ids is in entity_to_id",
    ),
    "an edge map that is no JSON": (
        "run", content("edge_map.json", "{\n'a'"), r"^edge_map\.json:2: is not valid JSON .*correct",
    ),
    "an edge map with half a character": (
        "run", content("edge_map.json", json.dumps({json.dumps({"predicate": "\ud800"}): "treats"})),
        r"^edge_map\.json: the key .* holds half a character .*; correct the key",
    ),
    "an edge map with a number of 5,000 digits": (
        "tracin", content("edge_map.json", '{"a": ' + "9" * 5000 + "}"),
        r"^edge_map\.json: holds a number that is too long",
    ),
    "an empty edge map": ("run", content("edge_map.json", b""), r"^edge_map\.json: is empty; give a file with"),
    # KGX
    "an empty nodes file": ("prepare KGX", content("nodes.jsonl", b""), r"^nodes\.jsonl: is empty; give"),
    "a KGX file for triples": (
        "prepare one file", lambda: shutil.copy("edges.jsonl", "train.tsv"),
        r"^train\.tsv:1: 1 column instead of 3; columns",
    ),
    "triples for a KGX file": (
        "prepare KGX", lambda: shutil.copy("train.tsv", "edges.jsonl"), r"^edges\.jsonl:1: is not JSON",
    ),
    "a node with a label of 10 MB with a tab": (
        "prepare KGX", added("nodes.jsonl", json.dumps({"id": f"{LONG}\t"}) + "\n"),
        r"^nodes\.jsonl:61: \"id\" 'x+'… .* holds a tab",
    ),
    # Test triples
    "a test triple out of range": (
        "tracin", nothing, r"^tail: entity id 6 is out of range; entity_to", "--test-triple", "0", "1", "6",
    ),
    "a negative test triple": (
        "tracin", nothing, r"^head: entity id -1 is out of range; entity_to", "--test-triple", "-1", "1", "2",
    ),
    "a listed triple out of range": (
        "tracin many", added("listed.txt", "0 3 1\n"), r"^listed\.txt:3: relation: relation id 3 is out",
    ),
    "an index out of range": (
        "run", nothing, r"^--test-indices 3: test\.tsv has 3 triples, with the indices 0 to 2",
        "--mode", "single", "--test-indices", "3",
    ),
    # Settings
    "a batch size of 0": ("tracin", nothing, r"argument --batch-size: 0 is below 1 \(see", "--batch-size", "0"),
    "a negative batch size": ("run", nothing, r"argument --batch-size: -4 is below 1 \(see", "--batch-size", "-4"),
    "a top-k of 0": ("tracin", nothing, r"argument --top-k: 0 is below 1 \(see", "--top-k", "0"),
    "a learning rate of NaN": (
        "run", nothing, r"--learning-rate: nan is not a finite number above 0", "--learning-rate", "nan",
    ),
    "an infinite learning rate": (
        "tracin", nothing, r"--learning-rate: inf is not a finite number", "--learning-rate", "inf",
    ),
    "a damping of 0": ("run", nothing, r"--damping: 0 is not a finite number above 0", "--damping", "0"),
    "height × width other than the dimension": (
        "train", nothing, r"3 × 4 = 12, not embedding_dim 13; change one of the three", "--embedding-dim", "13",
    ),
    "a kernel that is larger than the image": (
        "train", nothing, r"a 7 × 3 kernel does not fit on the 6 × 4 image .*choose a smaller", "--kernel-height", "7",
    ),
    "a model that no memory holds": (
        "train", nothing, r"does not fit into memory; lower --embedding-dim",
        "--embedding-dim", str(10**14), "--embedding-height", str(10**7), "--embedding-width", str(10**7),
    ),
    "a seed that is too long": ("train", nothing, r"--random-seed: .* is above", "--random-seed", str(2**70)),
    "a seed that is too long to prepare": (
        "prepare one file", nothing, r"--random-seed: .* is above", "--random-seed", str(2**70),
    ),
    "a number of rows that is too long": ("run", nothing, r"--top-k: .* is above", "--top-k", str(2**70)),
    "a single training triple": (
        "train", content("train.tsv", "aspirin\ttreats\tPTGS2\n"), r"at least two queries .*; add triples to --train",
    ),
    "other sizes than the checkpoint's": (
        "resume", nothing,
        r"^model\.pt: has output_channels 4, this run has 5; give the same settings", "--output-channels", "5",
    ),
    "fewer epochs than the checkpoint's": (
        "resume", nothing, r"^model\.pt: has 2 epochs behind it.*give more", "--num-epochs", "1",
    ),
    "a path that is too long": ("run", nothing, r"x+: .*name too long", "--train", "x" * 300),
    "a model whose path is too long": ("run", nothing, r"x+: .*name too long", "--model-path", "x" * 300),
    # Checkpoints
    "a checkpoint cut off": (
        "run", edited("model.pt", lambda old: old[:3000]),
        r"^model\.pt: is damaged or no checkpoint \(its end is missing\); copy it again",
    ),
    "a checkpoint cut off, resumed": (
        "resume", edited("model.pt", lambda old: old[:-100]),
        r"^model\.pt: is damaged or no checkpoint \(its end is missing\); copy it again",
    ),
    "a checkpoint cut off, converted": (
        "convert", edited("model.pt", lambda old: old[:9]),
        r"^model\.pt: is damaged or no checkpoint \(its end is missing\); copy it again",
    ),
    "a checkpoint of which a bit changed": (
        "tracin", bit_flipped("model.pt"), r"^model\.pt: is damaged .*data/14 has changed since .*copy it",
    ),
    "a checkpoint of which a bit changed, resumed": (
        "resume", bit_flipped("model.pt"), r"^model\.pt: is damaged .*has changed since",
    ),
    "an empty checkpoint": (
        "run", content("model.pt", b""), r"^model\.pt: is no checkpoint; give a file that training wrote",
    ),
    "triples for a checkpoint": (
        "convert", lambda: shutil.copy("train.tsv", "model.pt"), r"^model\.pt: is no checkpoint; give",
    ),
    "NaN in the weights": (
        "tracin", weight("conv1.weight", with_value(np.nan)), r"^model\.pt: conv1\.weight holds NaN .*use an",
    ),
    "infinite weights": (
        "run", weight("fc.bias", with_value(-np.inf)), r"^model\.pt: fc\.bias holds NaN or infinite .*use an",
    ),
    "infinite weights, resumed": (
        "resume", weight("fc.bias", with_value(np.inf)), r"^model\.pt: fc\.bias holds NaN or infinite",
    ),
    "NaN in the weights, converted": (
        "convert", weight("bn1.bias", with_value(np.nan)), r"^model\.pt: its weights: bn1\.bias holds NaN",
    ),
    "weights that overflow": (
        "tracin", weight("entity_embeddings.weight", lambda table: table.double() * 1e39),
        r"^model\.pt: .*(finite|infinite)",
    ),
    "a variance below 0": (
        "run", weight("bn2.running_var", with_value(-1.0)), r"^model\.pt: bn2\.running_var holds variances below 0",
    ),
    "a table that is larger than the file": (
        "run", stored("model.pt", lambda loaded: loaded | {
            CONFIG: loaded[CONFIG] | {"num_entities": 10**9},
            STATE: loaded[STATE] | {"entity_embeddings.weight": torch.zeros(1, 1).expand(10**9, 12)},
        }),
        r"^model\.pt: entity_embeddings\.weight does not hold",
    ),
    "another architecture": (
        "tracin", stored("model.pt", lambda loaded: loaded | {STATE: {"entity_embeddings.weight": torch.ones(6, 12)}}),
        r"^model\.pt: its weights are not those of a ConvE .*: it lacks relation_emb.*; use a checkpoint of",
    ),
    "a deeper model": (
        "run", weight("fc.bias", lambda bias: torch.zeros(13)), r"^model\.pt: fc\.bias has the shape \(13,\), but",
    ),
    "a transformer": (
        "run", lambda: torch.save({"model": {"layers.0.attention": torch.ones(2)}}, "model.pt"),
        r"^model\.pt: holds neither a native checkpoint nor weights of PyKEEN; use another file",
    ),
    "another model of PyKEEN's": (
        "run converted", pykeen_weights_of_another_model, r"^converted\.pt: .*another model than ConvE",
    ),
    "a converted model without a table": (
        "run converted",
        without_weight("converted.pt", "relation_representations.0._embeddings.weight"),
        r"^converted\.pt: its weights lack relation_representations\.0.*; use an undamaged",
    ),
    "PyKEEN's weights for tracin_pytorch.py": (
        "tracin", nothing,
        r"^converted\.pt: is a PyKEEN checkpoint; analyse it with run_tracin\.py", "--model-path", "converted.pt",
    ),
    "sizes that are no numbers": (
        "run", member(CONFIG, "embedding_dim", value="twelve"), r"^model\.pt: embedding_dim is 'twelve'; it",
    ),
    "settings that are no table": (
        "tracin", member(TRAINED, value=[1]), r"^model\.pt: its training_config is not a table",
    ),
    "an approach that is none": (
        "run", member(TRAINED, "training_approach", value="all"),
        r"^model\.pt: its training_config is not", "--method", "gauss-newton",
    ),
    "a learning rate that is no number": (
        "convert", member("learning_rate", value="0.1"), r"^model\.pt: its learning_rate is not",
    ),
    "a moment of another shape": (
        "resume", member("optimizer_state_dict", "state", 0, "exp_avg", value=torch.zeros(2)),
        r"^model\.pt: its optimizer_state_dict does not fit parameter 0 of the model; use an undamaged",
    ),
    "a history with a gap": (
        "resume", member("history", value=[]), r"^model\.pt: its history does not have one record for each",
    ),
    "a schedule of words": (
        "resume", member("scheduler_state_dict", "last_epoch", value="two"),
        r"^model\.pt: its scheduler_state_dict\.last_epoch is not",
    ),
    # What the last of several checkpoints says is read before the first is traced to, whose weights are broken here.
    "a last checkpoint of other entities": (
        "tracin", last_with(of_another_mapping),
        r"^other\.pt: was trained with another entity mapping .*; use the",
        "--model-path", "model.pt", "other.pt",
    ),
    "a last converted checkpoint of other entities": (
        "run", last_with(of_another_mapping, "converted.pt"),
        r"^other\.pt: was trained with another entity mapping .*; use the",
        "--model-path", "model.pt", "converted.pt", "other.pt",
    ),
    "a last checkpoint of sizes that are no numbers": (
        "run", last_with(lambda loaded: {CONFIG: loaded[CONFIG] | {"num_entities": torch.zeros(3)}}),
        r"^other\.pt: num_entities is tensor.*; it must be", "--model-path", "model.pt", "other.pt",
    ),
    "a last checkpoint of a size that is no size": (
        "run", last_with(lambda loaded: {CONFIG: loaded[CONFIG] | {"num_entities": 10**5000}}),
        r"^other\.pt: its model_config asks for more than any memory holds", "--model-path", "model.pt", "other.pt",
    ),
    "a last checkpoint of which a digest changed": (
        "run", lambda: digest_flipped("other.pt"),
        r"^other\.pt: is damaged .*data\.pkl has changed since .*copy it", "--model-path", "model.pt", "other.pt",
    ),
    "a last checkpoint cut off": (
        "run", edited("converted.pt", lambda old: old[:-100]),
        r"^converted\.pt: is damaged or no checkpoint \(its end is missing\); copy it again",
        "--model-path", "model.pt", "converted.pt",
    ),
    "no checkpoint": (
        "run", nothing, r"^none\.pt: no such file; give the path of a checkpoint", "--model-path", "none.pt",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_clear_line_and_nothing_is_written(project, case):
    command, spoil, expected, *more = REFUSED[case]
    spoil()
    arguments = COMMANDS[command]
    if case == "only one mapping":
        arguments = [part for part in arguments if part not in MAPPINGS[2:]]
    before = contents_below(project)
    message = assert_refused(run(*arguments, *more))
    assert re.search(expected, message)
    assert len(message) < 600
    assert contents_below(project) == before


@pytest.mark.parametrize("command", ["run", "run self", "tracin"])
def test_weights_too_large_to_compute_with_are_found_in_the_results(project, command):
    weight("bn0.running_mean", with_value(-3e38))()
    before = contents_below(project)
    message = assert_refused(run(*COMMANDS[command]), began=True)
    assert re.search(r"^model\.pt: the influences computed with it are not finite.*use an earlier checkpoint", message)
    assert contents_below(project) == before


@pytest.mark.parametrize("command", ["run self", "tracin"])
def test_a_curvature_that_cannot_be_inverted_names_its_checkpoint(project, command):
    before = contents_below(project)
    message = assert_refused(run(*COMMANDS[command], "--method", "gauss-newton", "--damping", "1e-30"), began=True)
    assert re.search(r"^model\.pt: damping 1e-30 is lost .*; give a larger --damping", message)
    assert contents_below(project) == before


# ---------------------------------------------------------------------------------------------------------------
# Accepted: the same results as without it


def with_bom(name):
    return edited(name, lambda old: b"\xef\xbb\xbf" + old)


def saved_on_windows():
    for name in ("train.tsv", "test.tsv", "entity_to_id.tsv", "relation_to_id.tsv", "names.txt", "edge_map.json"):
        edited(name, lambda old: b"\xef\xbb\xbf" + old.replace(b"\n", b"\r\n"))()


def all_compressed():
    for name in ("train.tsv", "test.tsv", "entity_to_id.tsv", "relation_to_id.tsv", "names.txt", "edge_map.json"):
        edited(name, gzip.compress)()


def pykeen_header(old):
    rows = [line.split("\t") for line in old.decode().splitlines()]
    return "".join(f"{position}\t{label}\n" for label, position in [("label", "id"), *rows]).encode()


# (command, what is done to the files, arguments, arguments of the run on clean files)
KVSALL = ("--training-approach", "kvsall")
ACCEPTED = {
    "a BOM in triples to prepare": ("prepare", with_bom("train.tsv"), (), ()),
    "a BOM in triples to train": ("train", with_bom("train.tsv"), (), ()),
    "a BOM in a mapping": ("train", with_bom("entity_to_id.tsv"), (), ()),
    "a BOM in a list": ("tracin many", with_bom("listed.txt"), (), ()),
    "a BOM in KGX": ("prepare KGX", with_bom("nodes.jsonl"), (), ()),
    "files saved on Windows": ("run", saved_on_windows, (), ()),
    "compressed files": ("run", all_compressed, (), ()),
    "a mapping in another order": (
        "tracin", edited("entity_to_id.tsv", lambda old: b"\n".join(old.split(b"\n")[-2::-1])), (), (),
    ),
    "a mapping of OpenKE's": ("run", edited("entity_to_id.tsv", lambda old: b"6\n" + old), (), ()),
    "a mapping of PyKEEN's": ("run", edited("entity_to_id.tsv", pykeen_header), (), ()),
    "duplicate triples to train": ("train", edited("train.tsv", lambda old: old * 2), KVSALL, KVSALL),
    "duplicate triples to prepare": ("prepare one file", edited("train.tsv", lambda old: old * 2), (), ()),
    "a batch of one to train": ("train", nothing, ("--batch-size", "1"), ("--batch-size", "2")),
    "a last batch of one to train": ("train", nothing, ("--batch-size", "10"), ("--batch-size", "11")),
    "a batch of one to trace": ("run", nothing, ("--batch-size", "1"), ()),
    "a batch of more than there is": ("run", nothing, ("--batch-size", str(10**15)), ()),
    "a top-k of more than there is": ("run", nothing, ("--top-k", str(10**15)), ("--top-k", "11")),
    "a checkpoint with more behind its end": ("run", edited("model.pt", lambda old: old + b"\0" * 10), (), ()),
}  # fmt: skip


@pytest.mark.parametrize("case", ACCEPTED)
def test_odd_input_gives_the_results_of_the_clean_files(project, case):
    command, spoil, arguments, clean_arguments = ACCEPTED[case]
    done = run(*COMMANDS[command], *clean_arguments)
    assert done.code == 0, done
    expected = results_in(project / "out")
    shutil.rmtree("out")
    spoil()
    done = run(*COMMANDS[command], *arguments)
    assert (done.code, done.trouble) == (0, None), done
    assert_same_results(results_in(project / "out"), expected)


def results_in(directory):
    """Read what a run has written, without settings, times and digests of input files."""
    found = {}
    for path in sorted(directory.rglob("*")):
        if path.suffix == ".pt":
            found[path.name] = load_weights(path)
        elif path.suffix == ".json" and path.name not in ("config.json", "training_history.json"):
            found[path.name] = json.loads(path.read_text(encoding="utf-8"), object_hook=without_top_k)
        elif path.suffix in (".txt", ".tsv"):
            found[path.name] = path.read_text(encoding="utf-8")
    assert found
    return found


def without_top_k(members):
    return {name: value for name, value in members.items() if name != "top_k"}


def load_weights(path):
    return {name: weight.tolist() for name, weight in torch.load(path, weights_only=True)["model_state_dict"].items()}


def assert_same_results(actual, expected):
    """Compare nested results; numbers to 1e-5, as other batches may add up in another order."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for name, part in expected.items():
            assert_same_results(actual[name], part)
    elif isinstance(expected, list):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert_same_results(one, other)
    elif isinstance(expected, float):
        assert actual == pytest.approx(expected, rel=1e-5, abs=1e-9)
    else:
        assert actual == expected


# ---------------------------------------------------------------------------------------------------------------
# Accepted: right by the definition


def read_results():
    return json.loads(Path("out/influences.json").read_text(encoding="utf-8"))["results"]


def train_and_trace(*more):
    """Train on the project's files and trace the test triples."""
    done = run(*COMMANDS["train"])
    assert done.code == 0, done
    shutil.copy("out/final_model.pt", "model.pt")
    arguments = [part for part in COMMANDS["run"] if part not in (*NAMES, "--use-optimized-tracin")]
    done = run(*arguments, "--top-k", "99", *more)
    assert done.code == 0, done


@pytest.mark.parametrize("engine", [(), ("--use-optimized-tracin",)])
@pytest.mark.parametrize(
    ("triples", "entities", "relations"),
    [
        ([(0, 0, 1), (1, 0, 2), (2, 0, 0), (1, 0, 1)], ("a", "b", "c"), ("r",)),
        ([(0, 0, 0), (0, 1, 0)], ("a",), ("r", "s")),
    ],
    ids=["one relation", "one entity"],
)
def test_the_smallest_graphs_train_and_are_explained(project, triples, entities, relations, engine):
    triples = np.array(triples)
    write_graph(triples, entities, relations)
    train_and_trace(*engine)
    assert_right(read_results(), influences_by_hand("model.pt", triples, triples), triples)


@pytest.mark.parametrize("engine", [(), ("--method", "gauss-newton"), ("--training-loss",)])
def test_a_repeated_triple_has_one_place_with_its_count(project, engine):
    arguments = (*COMMANDS["run"], "--top-k", "99", *engine)
    assert run(*arguments).code == 0
    once = read_results()
    edited("train.tsv", lambda old: old + 4 * old.splitlines(keepends=True)[4])()
    done = run(*arguments)
    assert done.code == 0, done
    repeated = conftest.TRAIN[4].tolist()
    for one, five in zip(once, read_results(), strict=True):
        expected, found = (
            {(row["train_head"], row["train_relation"], row["train_tail"]): row for row in result["influences"]}
            for result in (one, five)
        )
        assert len(five["influences"]) == len(found) == len(expected) == len(conftest.TRAIN)
        assert {triple: row.get("count", 1) for triple, row in found.items()} == {
            triple: 5 if triple == tuple(repeated) else 1 for triple in expected
        }
        if not engine:
            # Sums over batches of another size are rounded otherwise.
            for triple, row in found.items():
                assert row["influence"] == pytest.approx(expected[triple]["influence"], rel=1e-5)


def test_self_influence_of_a_repeated_triple_has_one_place(project):
    edited("train.tsv", lambda old: old * 2)()
    assert run(*COMMANDS["run self"], "--top-k", "99").code == 0
    rows = json.loads(Path("out/influences.json").read_text(encoding="utf-8"))["self_influences"]
    assert len(rows) == len(conftest.TRAIN)
    assert {row["count"] for row in rows} == {2}


HOSTILE_LABELS = (
    "../../up", "/etc/passwd", "..", "C:\\x", "a\x7fb", "=cmd|' /C calc'!A0", 'say "hi"', "it's", "a,b;c", "x" * 300,
    "日本", " padded ", "con",
)  # fmt: skip


def test_labels_that_look_like_paths_and_formulas_stay_labels(project):
    """Labels with quotes, separators of paths and formulas: files stay in their directory, and labels as they are."""
    number = len(HOSTILE_LABELS)
    triples = np.array([(place, 0, (place + 1) % number) for place in range(number)])
    write_graph(triples, HOSTILE_LABELS, ("../r",))
    before = set(contents_below(project.parent))
    train_and_trace("--output-per-triple", "-o", "each", "--csv-output", "--report", "each/report.html")
    new = {name for name in set(contents_below(project.parent)) - before if not name.startswith("project/out/")}
    files = sorted(name for name in new if not name.endswith("/"))
    assert len(files) == number + 2
    assert all(re.fullmatch(r"project/each/(test_\d+_[\w.-]+\.json|tracin\.csv|report\.html)", name) for name in files)
    assert all(len(Path(name).name) < 256 for name in files)
    for place in range(number):
        (path,) = Path("each").glob(f"test_{place}_*.json")
        content = json.loads(path.read_text(encoding="utf-8"))
        assert content["test_triple"]["head_label"] == HOSTILE_LABELS[place]
        assert {row["train_head_label"] for row in content["influences"]} == set(HOSTILE_LABELS)
    with Path("each/tracin.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert not any(row["TrainHead"].startswith(("=", "+", "-", "@")) for row in rows)
    assert {row["TrainHead"].replace("'=", "=") for row in rows} == set(HOSTILE_LABELS)


@pytest.mark.skipif(sys.platform != "linux", reason="the file system may take Unicode names only")
@pytest.mark.parametrize("command", ["prepare", "train", "tracin", "run", "convert"])
def test_a_directory_whose_name_is_no_unicode_changes_nothing(project, command):
    more = ["--report", "out/report.html"] if command in ("tracin", "run") else []
    done = run(*COMMANDS[command], *more)
    assert done.code == 0, done
    expected = results_in(project / "out")
    directory = project / os.fsdecode(b"b\xe4d")
    directory.mkdir()
    for file in project.iterdir():
        if file.is_file():
            shutil.copy(file, directory)
    inside = [
        directory / part if Path(part).is_file() or part.startswith("out") else part for part in COMMANDS[command]
    ]
    done = run(*inside, *more)
    assert (done.code, done.trouble) == (0, None), done
    found = results_in(directory / "out")
    for results in found.values():
        if isinstance(results, dict) and "checkpoints" in results:
            assert results["checkpoints"] == [str(project / os.fsdecode(b"b\xe4d") / "model.pt")]
    assert_same_results(without_paths(found), without_paths(expected))


def without_paths(found):
    """Leave out where the checkpoints lay."""
    if isinstance(found, dict):
        return {name: without_paths(part) for name, part in found.items() if name != "checkpoints"}
    return [without_paths(part) for part in found] if isinstance(found, list) else found

import os
import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

from conve_tracin.checkpoint.native import read_checkpoint_file
from conve_tracin.checkpoint.unpickle import Discarded, read_any_protocol
from conve_tracin.errors import InputError


class Payload:
    """Unpickled by anything but a safe reader, it calls `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def save(path, content, protocol):
    torch.save(content, path, pickle_protocol=protocol)
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_tensors_and_plain_values_come_back_as_torch_reads_them(tmp_path, protocol):
    table = torch.arange(12.0).view(3, 4)
    dtypes = [
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
        torch.int8, torch.uint8, torch.bool, torch.complex64, torch.complex128,
    ]  # fmt: skip
    content = {
        "weights": OrderedDict(table=table, column=table[1:, 2], transposed=table.T),
        "dtypes": [torch.tensor([1, 0, 1]).to(dtype) for dtype in dtypes],
        "empty": torch.empty(0, 5),
        "scalar": torch.tensor(3),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "plain": {"epoch": 3, "loss": [0.5, -1e300], "name": "größe", "nothing": None, "flags": (True, False, 2**70)},
    }
    path = save(tmp_path / "file.pt", content, protocol)
    expected = torch.load(path, weights_only=False)
    read = read_any_protocol(path)
    assert read["plain"] == expected["plain"]
    assert list(read["weights"]) == ["table", "column", "transposed"]

    def tensors(content):
        rest = [content["empty"], content["scalar"], content["parameter"]]
        return [*content["weights"].values(), *content["dtypes"], *rest]

    for ours, theirs in zip(tensors(read), tensors(expected), strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.stride() == theirs.stride()
        assert torch.equal(ours, theirs)
    read["weights"]["table"][1, 2] = -1
    assert read["weights"]["column"][0] == -1


@pytest.mark.parametrize("protocol", [2, 5])
def test_numpy_values_are_discarded_and_the_rest_is_read(tmp_path, protocol):
    state = ("MT19937", np.arange(5, dtype=np.uint32), 624, 0, 0.0)
    path = save(tmp_path / "file.pt", {"state": state, "best": np.float64(0.5), "epoch": 3}, protocol)
    if protocol == 2:
        # Protocol 2 has no bytes; numpy asks for _codecs.encode, which PyKEEN's files never do.
        with pytest.raises(pickle.UnpicklingError, match=r"_codecs\.encode"):
            read_any_protocol(path)
        return
    read = read_any_protocol(path)
    assert read["epoch"] == 3
    assert isinstance(read["state"][1], Discarded)
    assert isinstance(read["best"], Discarded)


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("hidden", ["top", "dict", "state"])
def test_pickle_that_would_run_code_is_refused_and_nothing_runs(tmp_path, protocol, hidden):
    marker = tmp_path / "ran"
    payload = Payload(os.mkdir, str(marker))
    content = {
        "top": payload,
        "dict": {"model_state_dict": {"entity_representations.0._embeddings.weight": payload}},
        "state": {"weights": OrderedDict(a=torch.ones(2)), "random_state": (1, [payload])},
    }[hidden]
    path = save(tmp_path / "checkpoint.pt", content, protocol)
    with pytest.raises(pickle.UnpicklingError, match=r"asks for \w+\.mkdir"):
        read_any_protocol(path)
    with pytest.raises(InputError, match=r"checkpoint\.pt: .*could run code.*--trust-pickle"):
        read_checkpoint_file(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists(), "the payload is harmless, so this test shows nothing"


@pytest.mark.parametrize(
    "name",
    ["builtins eval", "builtins getattr", "torch load", "torch.serialization load", "collections namedtuple",
     "collections OrderedDict.fromkeys", "torch._utils _rebuild_device_tensor_from_numpy", "numpy load",
     "torch FloatStorage.__init__", "_io FileIO"],
)  # fmt: skip
def test_any_other_name_is_refused_before_it_is_looked_up(tmp_path, name):
    module, attribute = name.split(" ")
    # The opcodes by hand: pickle itself would refuse to write some of these names.
    words = [b"\x8c" + bytes([len(word)]) + word.encode() for word in (module, attribute)]
    path = tmp_path / "checkpoint.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("checkpoint/data.pkl", b"\x80\x05" + b"".join(words) + b"\x93.")
        archive.writestr("checkpoint/version", "3\n")
    with pytest.raises(pickle.UnpicklingError, match="it asks for"):
        read_any_protocol(path)


def test_tensor_that_reaches_beyond_its_storage_is_refused(tmp_path):
    path = save(tmp_path / "file.pt", {"w": torch.zeros(4)}, 5)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    size_of_four, size_of_hundred = b"K\x00K\x04\x85", b"K\x00K\x64\x85"
    assert members["file/data.pkl"].count(size_of_four) == 1
    members["file/data.pkl"] = members["file/data.pkl"].replace(size_of_four, size_of_hundred)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(RuntimeError, match="out of bounds for storage"):
        read_any_protocol(path)
    with pytest.raises(InputError, match=r"is damaged or no checkpoint"):
        read_checkpoint_file(path)


@pytest.mark.parametrize("keep", [0, 10, 300, -40])
def test_file_that_is_cut_off_is_an_input_error(tmp_path, keep):
    path = save(tmp_path / "file.pt", {"w": torch.zeros(4)}, 5)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"file\.pt: "):
        read_checkpoint_file(path)


@pytest.mark.parametrize(
    "content", [b"", b"aspirin\ttreats\tpain\n", b'{"epoch": 1}', b"\x93NUMPY", b"\x1f\x8b\x08", b"\x80"]
)
def test_a_file_of_another_kind_is_not_called_dangerous(tmp_path, content):
    (tmp_path / "train.txt").write_bytes(content)
    with pytest.raises(InputError, match=r"train\.txt: is no checkpoint; give a file that training wrote"):
        read_checkpoint_file(tmp_path / "train.txt")


def test_the_old_format_of_torch_is_read(tmp_path):
    torch.save({"epoch": 1}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert read_checkpoint_file(tmp_path / "old.pt") == {"epoch": 1}

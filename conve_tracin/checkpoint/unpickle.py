"""Read files that torch.save wrote with a newer pickle protocol, without running code from them.

torch.load(weights_only=True) knows pickle protocol 2, torch.save's default. PyKEEN writes its training-loop
checkpoints and `Model.save_state` with the newest protocol. The reader below is the standard library's
unpickler with the names that a pickle may use narrowed to the few that stand for plain data
(https://docs.python.org/3/library/pickle.html#restricting-globals); any other name ends the reading.
"""

import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}


def read_any_protocol(path: str | Path) -> Any:
    """Read tensors (onto the CPU), containers and plain values out of a file of torch.save.

    numpy's arrays and numbers are read as `Discarded`: PyKEEN's random state is the only place of one.

    Raises pickle.UnpicklingError where the file names anything else, before it is looked up or called, and
    other exceptions where the file is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        pickled = next(name for name in names if name.rpartition("/")[2] == "data.pkl")
        folder = pickled.removesuffix("data.pkl")
        if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder").decode() != sys.byteorder:
            raise ValueError("it was written on a machine of the other byte order")
        with archive.open(pickled) as file:
            return _DataUnpickler(file, archive, f"{folder}data/").load()


class Discarded:
    """Stands for a value that nothing here needs; takes whatever its pickle passes, and keeps none of it."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


def _rebuild_tensor(storage: Tensor, offset: int, size: Sequence[int], stride: Sequence[int], *_: object) -> Tensor:
    # A view: tensors that shared their memory when saved share it again. Out-of-range sizes raise RuntimeError.
    return storage.as_strided(size, stride, offset)


def _rebuild_parameter(data: Tensor, *_: object) -> Tensor:
    return data


_PLAIN_DATA = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("numpy", "dtype"): Discarded,
    ("numpy", "ndarray"): Discarded,
    # numpy 2 moved its private modules.
    **{
        (f"numpy.{core}.{module}", name): Discarded
        for core in ("core", "_core")
        for module, name in (("numeric", "_frombuffer"), ("multiarray", "_reconstruct"), ("multiarray", "scalar"))
    },
    **{("torch", name): dtype for name, dtype in _STORAGE_DTYPES.items()},
}


class _DataUnpickler(pickle.Unpickler):
    def __init__(self, file: Any, archive: zipfile.ZipFile, data_folder: str) -> None:
        super().__init__(file)
        self._archive = archive
        self._data_folder = data_folder
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _PLAIN_DATA:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _PLAIN_DATA[module, name]

    def persistent_load(self, saved_id: tuple) -> Tensor:
        _, dtype, key, _, _ = saved_id
        if key not in self._storages:
            content = bytearray(self._archive.read(self._data_folder + key))
            self._storages[key] = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        return self._storages[key]

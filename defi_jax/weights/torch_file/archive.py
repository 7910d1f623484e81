"""PyTorch archives without PyTorch: `torch.save` files and TorchScript, tensor by tensor.

An archive is a zip with one pickle (`data.pkl`) and one file per storage (`data/<key>`). The
pickle is interpreted by `torch_pickle`, which imports and calls nothing; storages are read when a
tensor is asked for, so that a file may be larger than memory.
"""

from __future__ import annotations

import pathlib
import struct
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from defi_jax import errors, tensor_files
from defi_jax.weights.torch_file import unpickler

_FIX = "download the file again, or check that it is what the source names"
_LONGEST_SHOWN = 100  # characters of a name in a message
# What zipfile raises: for damage, encryption, a version of the format that it does not know, and
# names that are no UTF-8.
_DAMAGE = (zipfile.BadZipFile, OSError, EOFError, RuntimeError, ValueError, struct.error)


class TorchArchive(tensor_files.Tensors):
    """Official names to numpy arrays, read on access.

    Args:
        path: the archive.
        keys: where the state dict is inside the pickled object: () for a bare state dict or a
            TorchScript module, ("model",) for {"model": ...}, ("state_dict",) for Lightning. A bare
            tensor has the name "".

    Raises:
        UserError: no such file.
        DataError: not an archive, damaged, refused by `torch_pickle`, or an entry of the state dict
            is not a tensor.
    """

    def __init__(self, path: str | pathlib.Path, keys: Sequence[str] = ()):
        self._path = str(path)
        if not pathlib.Path(path).is_file():
            raise errors.UserError("no such file", self._path, "give a PyTorch file")
        hint = "; or it is older than PyTorch 1.6: save it again with torch.save"
        what = "not a PyTorch archive"
        with errors.DataError.instead_of(_DAMAGE, what, self._path, _FIX + hint):
            self._zip = zipfile.ZipFile(path)
        self._members = {info.filename: info for info in self._zip.infolist()}
        self._prefix = self._find_prefix()
        is_said = f"{self._prefix}byteorder" in self._members
        if is_said and self._member("byteorder") != b"little":
            raise errors.DataError("archive of a big-endian machine", self._path, _FIX)
        root = unpickler.load(self._member("data.pkl"), self._path)
        self._tensors = self._state_dict(root, keys)

    def __getitem__(self, name: str) -> np.ndarray:
        ref = self._tensors[name]
        dtype = self.spec(name).dtype
        data = self._member(f"data/{ref.storage.key}")
        if len(data) != ref.storage.size * dtype.itemsize:
            raise errors.DataError(
                f"storage {ref.storage.key!r} of {name} has {len(data)} bytes, "
                f"expected {ref.storage.size * dtype.itemsize}",
                self._path,
                _FIX,
            )
        flat = np.frombuffer(data, dtype)
        strides = [stride * dtype.itemsize for stride in ref.strides]
        # The window was checked against the storage's size when the pickle was read.
        window = np.lib.stride_tricks.as_strided(
            flat[ref.offset :], ref.shape, strides, writeable=False
        )
        return np.ascontiguousarray(window).reshape(ref.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def spec(self, name: str) -> tensor_files.TensorSpec:
        """See `Tensors`."""
        ref = self._tensors[name]
        return tensor_files.TensorSpec(ref.shape, np.dtype(ref.storage.dtype))

    def _find_prefix(self) -> str:
        """The one folder at the archive's top."""
        found = [name for name in self._zip.namelist() if name.endswith("data.pkl")]
        top = [name for name in found if name.count("/") == 1]
        if len(top) != 1:
            raise errors.DataError("archive without one data.pkl", self._path, _FIX)
        return top[0][: -len("data.pkl")]

    def _member(self, name: str) -> bytes:
        info = self._members.get(self._prefix + name)
        if info is None:
            raise errors.DataError(f"archive lacks {name}", self._path, _FIX)
        # PyTorch stores; a compressed member could be a small file that fills the memory.
        if info.compress_type != zipfile.ZIP_STORED:
            raise errors.DataError(f"{name} is compressed", self._path, _FIX)
        with errors.DataError.instead_of(_DAMAGE, "damaged archive", self._path, _FIX):
            return self._zip.read(info)

    def _state_dict(self, root: Any, keys: Sequence[str]) -> dict[str, unpickler.TensorRef]:
        for key in keys:
            if not isinstance(root, dict) or key not in root:
                raise errors.DataError(f"archive without {key!r}", self._path, _FIX)
            root = root[key]
        if isinstance(root, unpickler.Record):
            return _module_tensors(root)
        if isinstance(root, unpickler.TensorRef):
            return {"": root}
        if not isinstance(root, dict):
            raise errors.DataError("archive holds no state dict", self._path, _FIX)
        wrong = sorted(
            str(name)[:_LONGEST_SHOWN]
            for name, value in root.items()
            if not isinstance(name, str) or not isinstance(value, unpickler.TensorRef)
        )
        if wrong:
            raise errors.DataError(
                f"entries that are not tensors: {errors.listed(wrong, 10)}", self._path, _FIX
            )
        return root


def read_tensor(path: str | pathlib.Path) -> np.ndarray:
    """Reads a file that holds one tensor, as `torch.save(tensor, path)` writes it.

    Raises:
        UserError: no such file.
        DataError: see `TorchArchive`.
    """
    return TorchArchive(path)[""]


def _module_tensors(root: unpickler.Record) -> dict[str, unpickler.TensorRef]:
    """Tensors of a TorchScript module and its children under their dotted attribute names."""
    tensors, seen, waiting = {}, set(), [("", root)]
    while waiting:
        prefix, module = waiting.pop()
        if id(module) in seen or not isinstance(module.state, dict):
            continue
        seen.add(id(module))
        for name, value in module.state.items():
            if isinstance(value, unpickler.TensorRef):
                tensors[f"{prefix}{name}"] = value
            elif isinstance(value, unpickler.Record):
                waiting.append((f"{prefix}{name}.", value))
    return tensors

"""Reads the pickle inside a PyTorch archive without importing or calling anything.

The standard library's `pickletools` only splits the stream into opcodes; this file interprets the
few that PyTorch writes, on a stack of plain Python values. Global names are never looked up: those
that rebuild tensors and plain containers have a meaning here, those under `INERT` become records,
and any other name is refused by name before anything else of the stream is read. Other formats
around pickles (`data_pipelines.formats.numpy_pickle`) bring the names that they need.

A value of the stack may hold itself many times over, or be nested deeper than Python recurses: a
few bytes of pickle, and hours of `repr` or `hash`. So neither is ever taken of anything but texts
and numbers.
"""

from __future__ import annotations

import dataclasses
import math
import pickletools
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from defi_jax import errors

_MARK = object()

# Bounds of a tensor: numpy's for the axes, and 64-bit byte offsets of the widest elements.
_MOST_AXES = 64
_LARGEST_SIZE = 2**59
_LONGEST_SHOWN = 200  # characters of a message

# Namespaces whose objects become records: hyperparameters and module classes around the weights.
INERT = (
    "__torch__",
    "omegaconf",
    "typing",
    "lightning",
    "pytorch_lightning",
    "argparse",
    "pathlib",
)

# Names of element types and storages, to numpy dtype names ("bfloat16" is ml_dtypes').
DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}


class Name(NamedTuple):
    """A global name, never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclasses.dataclass(eq=False)
class Record:
    """An object of a class we neither have nor want: its name, arguments and state."""

    name: Name
    arguments: tuple
    state: Any = None


class Stateful:
    """What a `rebuild` function may return to be completed by the pickle's BUILD."""

    def set_state(self, state: Any) -> None:
        """Takes the state; raises ValueError where it is another than expected."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Storage:
    """A persistent id: one file of the archive.

    Attributes:
        dtype: numpy dtype name.
        key: file name below data/.
        size: number of elements.
    """

    dtype: str
    key: str
    size: int


@dataclasses.dataclass(frozen=True)
class TensorRef:
    """A tensor as PyTorch rebuilds it: a strided window into a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> TensorRef:
    """torch._utils._rebuild_tensor_v2; `rest` is gradients, hooks and metadata."""
    del rest
    if not all(
        isinstance(axes, tuple | list) and len(axes) <= _MOST_AXES for axes in (shape, strides)
    ):
        raise ValueError(f"a tensor without a shape of at most {_MOST_AXES} axes")
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, Storage) or not all(type(number) is int for number in numbers):
        raise ValueError("a tensor is not made of a storage and whole numbers")
    if min(numbers) < 0 or len(shape) != len(strides):
        raise ValueError("a tensor with negative or unequal shape and strides")
    if max(*numbers, math.prod(size or 1 for size in shape)) > _LARGEST_SIZE:
        raise ValueError("a tensor too large for any memory")
    if math.prod(shape) > max(storage.size, 1):
        raise ValueError(f"a tensor larger than its storage {storage.key!r}")
    extents = ((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if 0 not in shape and offset + sum(extents) >= storage.size:
        raise ValueError(f"a tensor reaches beyond its storage {storage.key!r}")
    return TensorRef(storage, offset, tuple(shape), tuple(strides))


def _parameter(tensor: Any, *rest: Any) -> TensorRef:
    """torch._utils._rebuild_parameter."""
    del rest
    if not isinstance(tensor, TensorRef):
        raise ValueError("a parameter that is not a tensor")
    return tensor


def _key(value: Any) -> str | int:
    """A key of a dictionary, or a name: nothing that takes long to hash or to print."""
    if isinstance(value, str) or (type(value) is int and abs(value) <= _LARGEST_SIZE):
        return value
    raise ValueError(f"a key or name of type {type(value).__name__}")


def _pairs(items: Any = ()) -> dict:
    """OrderedDict of nothing or of pairs."""
    return {_key(key): value for key, value in items}


def _latin1(text: str, encoding: str) -> bytes:
    """bytes, as protocol 2 writes them."""
    if not isinstance(text, str) or encoding != "latin1":
        raise ValueError("bytes in another encoding than latin1")
    return text.encode("latin1")


# What may be "called": markers of PyTorch and plain containers, each a pure function above.
_REBUILD: dict[Name, Callable[..., Any]] = {
    Name("torch._utils", "_rebuild_tensor_v2"): _tensor,
    Name("torch._utils", "_rebuild_tensor"): _tensor,
    Name("torch._utils", "_rebuild_parameter"): _parameter,
    # TorchScript's typed lists: the list is what counts.
    **{
        Name("torch.jit._pickle", f"build_{kind}list"): lambda value, *_: value
        for kind in ("int", "double", "bool", "tensor")
    },
    Name("torch.jit._pickle", "restore_type_tag"): lambda value, *_: value,
    Name("torch", "Size"): lambda items=(): tuple(items),
    Name("torch", "device"): lambda *parts: parts,
    Name("collections", "OrderedDict"): _pairs,
    Name("collections", "defaultdict"): lambda factory=None, *items: _pairs(*items),
    Name("_codecs", "encode"): _latin1,
    Name("builtins", "dict"): _pairs,
    Name("builtins", "list"): lambda items=(): list(items),
    Name("builtins", "tuple"): lambda items=(): tuple(items),
    Name("builtins", "set"): lambda items=(): list(items),
    Name("builtins", "frozenset"): lambda items=(): list(items),
}

# Names that only stand for themselves (storage classes, element types, factories).
_ALONE = {
    *(Name("torch", storage) for storage in DTYPES),
    *(Name("torch", dtype) for dtype in DTYPES.values()),
    *(
        Name("builtins", kind)
        for kind in ("int", "long", "float", "str", "unicode", "bool", "bytes", "object")
    ),
}


def load(
    data: bytes,
    where: str,
    *,
    rebuild: Mapping[Name, Callable[..., Any]] = MappingProxyType({}),
    alone: Collection[Name] = (),
) -> Any:
    """Interprets one pickle.

    Args:
        data: the stream.
        where: file it came from, for messages.
        rebuild: further names that may be "called", each a pure function.
        alone: further names that only stand for themselves.

    Returns:
        Plain dicts, lists, tuples, numbers and texts; `TensorRef`, `Storage`, `Record`, `Name`.

    Raises:
        DataError: a name outside the allowed list, an opcode PyTorch does not write, or a damaged
            stream.
    """
    machine = _Machine(where, {**_REBUILD, **rebuild}, {*_ALONE, *alone})
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                return machine.stack.pop()
            machine.step(opcode.name, argument)
    except errors.DataError:
        raise
    # Whatever a damaged stream does to the stack machine is one and the same finding.
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError) as error:
        raise _refusal(f"damaged or foreign pickle ({error})", where) from error
    raise _refusal("pickle without an end", where)


class _Machine:
    """The stack, the memo, and one method per group of opcodes."""

    def __init__(self, where: str, rebuild: Mapping[Name, Any], alone: Collection[Name]):
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.where, self.rebuild, self.alone = where, rebuild, alone

    def step(self, opcode: str, argument: Any) -> None:
        """Executes one opcode."""
        if opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode]())
        elif opcode in _LITERALS:
            self.stack.append(argument)
        elif opcode not in _HANDLERS:
            raise _refusal(f"pickle opcode {opcode}", self.where)
        else:
            _HANDLERS[opcode](self, argument)

    def pop_mark(self) -> list[Any]:
        """Removes and returns everything above the last mark."""
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is _MARK:
                items = self.stack[index + 1 :]
                del self.stack[index:]
                return items
        raise ValueError("no mark")

    def pop_pair(self) -> list[Any]:
        """Removes and returns the last two values."""
        return [self.stack.pop(-2), self.stack.pop()]

    def note(self, index: Any) -> None:
        """Keeps the last value under a number."""
        self.memo[int(index)] = self.stack[-1]

    def collect(self, kind: Callable[[list], Any]) -> None:
        """Replaces what is above the mark by a container of it."""
        self.stack.append(kind(self.pop_mark()))

    def tuple_of(self, count: int) -> None:
        """Replaces the last `count` values by their tuple."""
        if len(self.stack) < count:
            raise ValueError("stack too short")
        items = tuple(self.stack[-count:])
        del self.stack[-count:]
        self.stack.append(items)

    def append(self, items: list[Any]) -> None:
        """Adds to the list, or to the record that behaves like one, on top of the stack."""
        target = self.stack[-1]
        if isinstance(target, Record):
            return
        if not isinstance(target, list):
            raise ValueError("append to something that is no list")
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        """Sets keys of the dict, or of the record that behaves like one, on top of the stack."""
        target = self.stack[-1]
        if isinstance(target, Record):
            target.state = {} if target.state is None else target.state
            target = target.state
        if not isinstance(target, dict) or len(items) % 2:
            raise ValueError("set items of something that is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value

    def global_name(self, module: Any, name: Any) -> None:
        """Pushes a name that is on the list; refuses any other."""
        module, name = str(_key(module)), str(_key(name))
        # Protocol 2 writes the builtins under their name of Python 2.
        found = Name("builtins" if module == "__builtin__" else module, name)
        if not (found in self.rebuild or found in self.alone or _is_inert(found)):
            raise _refusal(f"pickle names {found}, which is not on the list", self.where)
        self.stack.append(found)

    def call(self, arguments: tuple) -> None:
        """Rebuilds a tensor or container, or records an inert object."""
        target = self.stack.pop()
        if isinstance(target, Name) and target in self.rebuild:
            self.stack.append(self.rebuild[target](*arguments))
        elif isinstance(target, Name) and _is_inert(target):
            self.stack.append(Record(target, tuple(arguments)))
        elif target == Name("builtins", "object"):
            self.stack.append(Record(target, ()))
        else:
            what = target if isinstance(target, Name) else f"a {type(target).__name__}"
            raise _refusal(f"pickle calls {what}", self.where)

    def build(self) -> None:
        """Gives a record its state; the attributes of an OrderedDict are dropped."""
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Record):
            target.state = state
        elif isinstance(target, Stateful):
            target.set_state(state)
        elif not isinstance(target, dict):
            raise ValueError(f"state for a {type(target).__name__}")

    def persistent(self) -> None:
        """Turns ("storage", class, key, device, size) into a storage."""
        kind, storage, key, _, size = self.stack.pop()
        if kind != "storage" or not isinstance(storage, Name) or storage.name not in DTYPES:
            raise ValueError("a persistent id that is no storage")
        if type(size) is not int or size < 0:
            raise ValueError("storage of no size")
        self.stack.append(Storage(DTYPES[storage.name], str(_key(key)), size))


def _is_inert(name: Name) -> bool:
    root = name.module.split(".")[0]
    return root in INERT


def _refusal(what: str, where: str) -> errors.DataError:
    return errors.DataError(what[:_LONGEST_SHOWN], where, "use the file of the official release")


def _new_with_keywords(machine: _Machine, _: Any) -> None:
    if machine.stack.pop():
        raise ValueError("object with keyword arguments")
    machine.call(tuple(machine.stack.pop()))


def _dict(machine: _Machine, _: Any) -> None:
    items = machine.pop_mark()
    machine.stack.append({})
    machine.set_items(items)


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": list,
    "MARK": lambda: _MARK,
}

_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("STRING", "SHORT_BINSTRING", "BINSTRING"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}

_HANDLERS: dict[str, Callable[[_Machine, Any], object]] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "POP": lambda machine, _: machine.stack.pop() and None,
    "POP_MARK": lambda machine, _: machine.pop_mark() and None,
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1]),
    "TUPLE": lambda machine, _: machine.collect(tuple),
    "LIST": lambda machine, _: machine.collect(list),
    "DICT": _dict,
    "FROZENSET": lambda machine, _: machine.collect(list),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "APPEND": lambda machine, _: machine.append([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.pop_mark()),
    "ADDITEMS": lambda machine, _: machine.append(machine.pop_mark()),
    "SETITEM": lambda machine, _: machine.set_items(machine.pop_pair()),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_mark()),
    "GLOBAL": lambda machine, names: machine.global_name(*names.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.global_name(*machine.pop_pair()),
    "REDUCE": lambda machine, _: machine.call(tuple(machine.stack.pop())),
    "NEWOBJ": lambda machine, _: machine.call(tuple(machine.stack.pop())),
    "NEWOBJ_EX": _new_with_keywords,
    "BUILD": lambda machine, _: machine.build(),
    "BINPERSID": lambda machine, _: machine.persistent(),
    **dict.fromkeys(
        ("GET", "BINGET", "LONG_BINGET"),
        lambda machine, index: machine.stack.append(machine.memo[int(index)]),
    ),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda machine, index: machine.note(index)),
    "MEMOIZE": lambda machine, _: machine.note(len(machine.memo)),
}

"""Reads what a pickle names without executing any of it.

`torch.load(weights_only=True)` stops at the first thing it does not allow. A person who has to put
a file right needs all of them, so the opcodes are walked here over symbols: no import, no call, no
object of the file's choosing.
"""

import pickletools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final

from torch._utils import IMPORT_MAPPING, NAME_MAPPING

# The list that `torch.load` itself consults: it has no public name, and a copy would drift.
from torch._weights_only_unpickler import _blocklisted_modules, _get_allowed_globals


@dataclass(frozen=True)
class StorageReference:
    """A tensor's memory, as a pickle refers to it."""

    type_name: str
    key: str
    numel: int

    @property
    def nbytes(self) -> int:
        """What torch takes for it. KeyError for a kind that is not in ITEM_BYTES."""
        return self.numel * ITEM_BYTES[self.type_name]


@dataclass(frozen=True)
class PickleScan:
    """What one pickle names."""

    globals: tuple[str, ...]
    """Every class or function, `module.name`, in order of appearance, once."""
    storages: tuple[StorageReference, ...]
    other_references: int
    """How many things outside the pickle it refers to that are no storages."""
    strings: tuple[str, ...] | None
    """The pickled value where it is a list of strings; None otherwise."""
    protocol: int
    """The highest protocol among the opcodes."""

    @property
    def blocked(self) -> tuple[str, ...]:
        """The globals that `torch.load(weights_only=True)` refuses, and those that eat memory."""
        allowed = _get_allowed_globals().keys() - HUNGRY_GLOBALS
        return tuple(
            name
            for name in self.globals
            if name not in allowed or name.rpartition(".")[0] in _blocklisted_modules
        )


HUNGRY_GLOBALS = frozenset({"builtins.bytearray"})
"""torch allows it, no checkpoint needs it, and a few bytes of pickle make it as large as memory."""


class DamagedPickle(ValueError):
    """The opcodes do not form a pickle.

    Attributes:
        scan: What was named before the damage.
    """

    def __init__(self, reason: str, scan: PickleScan | None = None) -> None:
        super().__init__(reason)
        self.scan = scan


@dataclass(frozen=True)
class _Global:
    name: str


class _Opaque:
    """A value nothing is known of."""


_MARK: Final = object()
_OPAQUE: Final = _Opaque()


@dataclass
class _Machine:
    """The stack machine of pickle over symbols.

    Strings, numbers, tuples and lists are themselves; all else is opaque.
    """

    stack: list[object] = field(default_factory=list)
    memo: dict[int, object] = field(default_factory=dict)
    globals: dict[str, None] = field(default_factory=dict)
    storages: dict[StorageReference, None] = field(default_factory=dict)
    references: int = 0
    protocol: int = 0

    def run(self, operations: Iterator[tuple[pickletools.OpcodeInfo, object, int | None]]) -> None:
        for opcode, argument, position in operations:
            self.protocol = max(self.protocol, opcode.proto)
            self._step(opcode, argument, position)

    def _step(self, opcode: pickletools.OpcodeInfo, argument: object, position: int | None) -> None:
        match opcode.name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "MARK":
                self.stack.append(_MARK)
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[_number(argument)] = self._top()
            case "MEMOIZE":
                self.memo[len(self.memo)] = self._top()
            case "GET" | "BINGET" | "LONG_BINGET":
                if _number(argument) not in self.memo:
                    raise DamagedPickle(f"memo {argument} is read before it is written")
                self.stack.append(self.memo[_number(argument)])
            case "POP":
                self._pop()
            case "POP_MARK":
                self._pop_to_mark()
            case "DUP":
                self.stack.append(self._top())
            case "GLOBAL":
                self.stack.append(self._name(str(argument)))
            case "INST":
                self._pop_to_mark()
                self._name(str(argument))
                self.stack.append(_OPAQUE)
            case "STACK_GLOBAL":
                name, module = self._pop(), self._pop()
                if isinstance(module, str) and isinstance(name, str):
                    self.stack.append(self._name(f"{module} {name}"))
                else:
                    self.stack.append(self._remember(f"a name computed at byte {position}"))
            case "EXT1" | "EXT2" | "EXT4":
                self.stack.append(self._remember(f"copyreg extension {argument}"))
            case "PERSID":
                self.stack.append(_OPAQUE)
            case "BINPERSID":
                self.stack.append(self._persistent(self._pop()))
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                self.stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
            case "EMPTY_TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = len(opcode.stack_before)
                self.stack.append(tuple(reversed([self._pop() for _ in range(count)])))
            case "TUPLE":
                self.stack.append(tuple(self._pop_to_mark()))
            case "EMPTY_LIST":
                self.stack.append([])
            case "LIST":
                self.stack.append(self._pop_to_mark())
            case "APPEND":
                self._extend([self._pop()])
            case "APPENDS":
                self._extend(self._pop_to_mark())
            case "SETITEM":
                self._pop()
                self._pop()
            case "SETITEMS" | "ADDITEMS":
                self._pop_to_mark()
            case "BUILD":
                self._pop()
            case _:
                self._other(opcode, argument)

    def _other(self, opcode: pickletools.OpcodeInfo, argument: object) -> None:
        """Constants push themselves; what makes an object (REDUCE, OBJ) pushes the unknown."""
        before = opcode.stack_before
        if pickletools.markobject in before:
            self._pop_to_mark()
            before = before[: before.index(pickletools.markobject)]
        for _ in before:
            self._pop()
        constant = opcode.arg is not None and not opcode.stack_before
        for _ in opcode.stack_after:
            self.stack.append(argument if constant else _OPAQUE)

    def _name(self, spelled: str) -> _Global:
        module, _, name = spelled.partition(" ")
        # Python 2 spellings, as torch reads them.
        if (module, name) in NAME_MAPPING:
            module, name = NAME_MAPPING[(module, name)]
        elif module in IMPORT_MAPPING:
            module = IMPORT_MAPPING[module]
        return self._remember(f"{module}.{name}")

    def _remember(self, name: str) -> _Global:
        self.globals[name] = None
        return _Global(name)

    def _persistent(self, identity: object) -> object:
        match identity:
            case ("storage", _Global(name=kind), str(key), _, int(numel), *_) if numel >= 0:
                self.storages[StorageReference(kind, key, numel)] = None
            case _:
                self.references += 1
        return _OPAQUE

    def _extend(self, items: list[object]) -> None:
        target = self._top()
        if isinstance(target, list):
            target.extend(items)

    def _top(self) -> object:
        if not self.stack:
            raise DamagedPickle("an operation finds nothing to work on")
        return self.stack[-1]

    def _pop(self) -> object:
        top = self._top()
        self.stack.pop()
        return top

    def _pop_to_mark(self) -> list[object]:
        items: list[object] = []
        while (item := self._pop()) is not _MARK:
            items.append(item)
        items.reverse()
        return items


class _Bounded:
    """A stream that allocates no more than the file holds, whatever length an opcode declares."""

    def __init__(self, stream: BinaryIO, end: int) -> None:
        self._stream = stream
        self._end = end

    def read(self, count: int) -> bytes:
        return self._stream.read(max(0, min(count, self._end - self._stream.tell())))

    def readline(self) -> bytes:
        return self._stream.readline(max(0, self._end - self._stream.tell()))

    def tell(self) -> int:
        return self._stream.tell()


def scan_pickle(stream: BinaryIO, end: int) -> PickleScan:
    """Walks one pickle from the stream's position, which is left behind its last byte.

    Args:
        stream: A seekable file.
        end: Offset behind the last byte that may be read.

    Raises:
        DamagedPickle: The opcodes break off or make no sense.
    """
    machine = _Machine()
    source: Any = _Bounded(stream, end)  # the three methods that genops calls
    try:
        machine.run(pickletools.genops(source))
    except Exception as error:  # pickletools raises whatever the bytes lead it to
        raise DamagedPickle(str(error), _result(machine)) from None
    return _result(machine)


def _result(machine: _Machine) -> PickleScan:
    value = machine.stack[-1] if machine.stack else None
    items = value if isinstance(value, list) else [None]
    strings = tuple(item for item in items if isinstance(item, str))
    return PickleScan(
        globals=tuple(machine.globals),
        storages=tuple(machine.storages),
        other_references=machine.references,
        strings=strings if len(strings) == len(items) else None,
        protocol=machine.protocol,
    )


def _number(argument: object) -> int:
    if not isinstance(argument, int):
        raise DamagedPickle(f"{argument!r} is no memo number")
    return argument


_ITEM_BYTES: Mapping[str, int] = {
    "ComplexDoubleStorage": 16,
    "ComplexFloatStorage": 8,
    "DoubleStorage": 8,
    "LongStorage": 8,
    "FloatStorage": 4,
    "IntStorage": 4,
    "HalfStorage": 2,
    "BFloat16Storage": 2,
    "ShortStorage": 2,
    "CharStorage": 1,
    "ByteStorage": 1,
    "BoolStorage": 1,
}
ITEM_BYTES: Mapping[str, int] = {
    **{
        f"{place}.{kind}": n for kind, n in _ITEM_BYTES.items() for place in ("torch", "torch.cuda")
    },
    "torch.QInt32Storage": 4,
    "torch.QInt8Storage": 1,
    "torch.QUInt8Storage": 1,
    "torch.QUInt4x2Storage": 1,
    "torch.QUInt2x4Storage": 1,
    "torch.storage.UntypedStorage": 1,
}
"""Bytes of one element by storage type. No other type can be measured, so none is read."""

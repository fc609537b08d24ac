"""What a checkpoint's description may say: each instruction is looked at, and none is followed, before torch reads it."""

from __future__ import annotations

import pickletools
from typing import Any

_STORAGES = ("Float", "Double", "Half", "Long", "Int", "Short", "Char", "Byte", "Bool")
_REBUILD, _ORDERED = "torch._utils _rebuild_tensor_v2", "collections OrderedDict"
_KNOWN_NAMES = {_REBUILD, _ORDERED, *(f"torch {kind}Storage" for kind in _STORAGES)}
_MAX_INSTRUCTIONS, _MAX_LONG_NUMBERS = 500_000, 20_000
"""Far more than the largest run needs, and few enough to be read at once; long numbers can be made to share one hash."""

_TEXT, _NUMBER, _DICT, _LIST, _TUPLE, _NOTHING_IN_IT, _TENSOR, _STORAGE = (
    *("text", "number", "dict", "list", "tuple", "empty tuple", "tensor", "storage"),
)
_PUSHED = {
    **dict.fromkeys(("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"), _NUMBER),
    **{"BINUNICODE": _TEXT, "EMPTY_DICT": _DICT, "EMPTY_LIST": _LIST, "EMPTY_TUPLE": _NOTHING_IN_IT},
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def require_plain(description: bytes) -> None:
    """Raise ValueError if a description could do anything but describe a reasonable number of tensors and plain values.

    It is a small program for a machine with a stack, of which the kinds of the values are followed here. A key is a text, as
    hashing anything else may take for ever; what holds other values stands in one place only, as what is shared again and
    again grows without bound where it is hashed or printed; and nothing is called but what builds a tensor.
    """
    stack: list[str] = []
    marks: list[int] = []
    known: dict[Any, str] = {}
    long_numbers = 0
    for count, (opcode, argument, _) in enumerate(pickletools.genops(description)):
        name = opcode.name
        long_numbers += name == "LONG1"
        if count > _MAX_INSTRUCTIONS or long_numbers > _MAX_LONG_NUMBERS:
            raise ValueError("it describes too many values")
        if name in _PUSHED:
            stack.append(_PUSHED[name])
        elif name == "MARK":
            marks.append(len(stack))
        elif name in _TUPLES or name == "TUPLE":
            _taken(stack, marks, _TUPLES.get(name))
            stack.append(_TUPLE)
        elif name in ("APPEND", "APPENDS"):
            _taken(stack, marks, 1 if name == "APPEND" else None)
            _require(stack[-1] == _LIST, "something is appended to what is no list")
        elif name in ("SETITEM", "SETITEMS"):
            pairs = _taken(stack, marks, 2 if name == "SETITEM" else None)
            _require(stack[-1] == _DICT and all(key == _TEXT for key in pairs[::2]), "a name is no text")
        elif name in ("BINPUT", "LONG_BINPUT"):
            known[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            _require(known[argument] == _TEXT or known[argument] in _KNOWN_NAMES, "a value stands in two places")
            stack.append(known[argument])
        elif name == "GLOBAL":
            _require(argument in _KNOWN_NAMES, f"it names {argument}")
            stack.append(str(argument))
        elif name == "REDUCE":
            function, given = _taken(stack, marks, 2)
            fitting = (function == _REBUILD and given == _TUPLE) or (function == _ORDERED and given == _NOTHING_IN_IT)
            _require(fitting, "it calls something else than what builds a tensor")
            stack.append(_TENSOR)
        elif name == "BINPERSID":
            _require(_taken(stack, marks, 1) == [_TUPLE], "a storage is not described")
            stack.append(_STORAGE)
        else:
            _require(name in ("PROTO", "STOP"), f"it holds the instruction {name}")
    _require(stack == [_DICT], "it does not describe one dictionary")


def _taken(stack: list[str], marks: list[int], number: int | None) -> list[str]:
    """Take so many values off the stack, or those above the last mark; IndexError or ValueError where there are fewer."""
    start = marks.pop() if number is None else len(stack) - number
    _require(start >= (marks[-1] if marks else 0), "its stack is empty")
    taken = stack[start:]
    del stack[start:]
    return taken


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)

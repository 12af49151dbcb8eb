"""A pickle reader that runs nothing: every name in the stream is looked up in a table of our own functions.

Python's unpickler imports and calls whatever a stream names. This one walks over the opcodes itself: a name is either
one that the caller knows, with a function that builds a plain value; or a class of a harmless package, whose instances
become an inert `Opaque`; or it is refused by a UserError before anything is called.

A subclass of `pickle.Unpickler` with its own `find_class` would be shorter, but no bound holds there: an index of its
memo in 5 bytes takes gigabytes, a key of nested tuples ends the interpreter, and BUILD sets attributes of whatever it
finds. Here what a file may cost grows with its size alone: see DEPTH, STEPS, KEY and `room`.
"""

import pickletools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from mammoclip_jax.errors import UserError

# A class below these may lie in a checkpoint beside the arrays. Nothing is imported from them.
HARMLESS = tuple(
    """
    omegaconf pytorch_lightning lightning lightning_fabric lightning_utilities ml_collections transformers
    tokenizers timm torchvision efficientnet_pytorch breastclip torch.nn torch.optim torch.amp torch.cuda.amp
    torch.utils.data pathlib enum datetime decimal fractions uuid typing types easydict yacs.config
    """.split()
)
DEPTH = 200  # containers within containers; a whole pickled module needs some 50
STEPS = 10_000_000  # opcodes; ten thousand tensors with their optimiser's take half a million
KEY = 100  # values in a key of tuples: each is hashed anew whenever the key is used
_MARK = object()
_LESS = "Where you trust it: load it with the code that wrote it, and save only the state_dict."
_MAPPING_TYPES = ("Namespace", "SimpleNamespace", "AttributeDict", "EasyDict", "CfgNode", "AttrDict")


class Opaque:
    """A stand-in for an object of a class that is not loaded. It holds what the file says of it, and does nothing.

    Attributes:
        name: of the class, "omegaconf.base.ContainerMetadata".
        args: what it was made from.
        state: its attributes as the file has them, mostly a dict; None where there were none.
        items: what was set by key, if it is a kind of dict.
        entries: what was appended, if it is a kind of list.
    """

    def __init__(self, name: str, args: tuple = ()):
        self.name, self.args, self.state, self.items, self.entries = name, args, None, {}, []

    def __repr__(self):
        return f"Opaque({self.name})"


class Known(NamedTuple):
    """A name of the stream that may be called; `make` is ours."""

    name: str
    make: Callable[..., Any]


class Pending:
    """A value that the stream makes in two steps: `build` takes the second, `finish` gives the value."""

    def build(self, state: Any) -> None:
        raise NotImplementedError

    def finish(self) -> Any:
        raise NotImplementedError


def load(
    stream,
    known: Mapping[tuple[str, str], Any],
    persistent: Callable[[Any], Any],
    file: str,
    room: int = 1 << 24,
    harmless: tuple[str, ...] = HARMLESS,
) -> Any:
    """The object of the pickle that starts at the stream's position; the stream then stands behind it.

    Args:
        stream: has read, readline and tell; an mmap or a BytesIO.
        known: {(module, name): value, or a `Known`}.
        persistent: gives the object of a persistent id.
        file: named in errors.
        room: bytes that calls may make anew out of what the stream holds once, and a few bytes of it ask for again.
        harmless: packages whose classes become an `Opaque`.

    Raises:
        UserError: a name is neither known nor a class of `harmless`; the opcode is one that no checkpoint needs; or
            there are more than STEPS, or more than `room`.
        Exception: of other kinds if the stream is damaged, or nested deeper than DEPTH.
    """
    machine = _Machine(known, persistent, file, room, harmless)
    for number, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if number == STEPS:
            raise UserError(f"{file}: refused: a pickle of more than {STEPS:,} steps. {_LESS}")
        machine.step(opcode.name, argument)
    return finished(machine.stack[-1])


def checked_key(value: Any) -> Any:
    """`value`; TypeError if its hash takes long or overflows the interpreter's stack: nested tuples, huge numbers."""
    parts = [value]
    for part in parts:  # to which the parts of tuples are added
        if isinstance(part, tuple):
            if len(parts) + len(part) > KEY:
                raise TypeError("a key of nested tuples")
            parts += part
        elif isinstance(part, (slice, memoryview)) or isinstance(part, int) and part.bit_length() > 64:
            raise TypeError(f"a key with a {type(part).__name__} of any size")
    return value


def with_keys(target: dict, pairs: Iterable) -> dict:
    """`target` with the pairs set in it."""
    for key, value in pairs:
        target[checked_key(key)] = value
    return target


def finished(value: Any, seen: dict | None = None, depth: int = 0) -> Any:
    """`value` with plain containers: pending values are put in place, omegaconf's and Namespaces are dict or list."""
    seen = {} if seen is None else seen
    key = id(value)
    if key in seen:
        return seen[key][0]
    if depth > DEPTH:
        raise ValueError(f"nested deeper than {DEPTH}")
    depth += 1
    if isinstance(value, dict):
        seen[key] = value, value
        for name, item in list(value.items()):
            value[name] = finished(item, seen, depth)
        return value
    if isinstance(value, list):
        seen[key] = value, value
        value[:] = [finished(item, seen, depth) for item in value]
        return value
    if isinstance(value, tuple) and not isinstance(value, Known):
        result = tuple(finished(item, seen, depth) for item in value)
    elif isinstance(value, (set, frozenset)):
        result = type(value)(finished(item, seen, depth) for item in value)
    elif isinstance(value, Known):
        result = Opaque(value.name)
    elif isinstance(value, Pending):
        result = finished(value.finish(), seen, depth)
    elif isinstance(value, Opaque):
        result = _plain(value, seen, depth)
    else:
        return value
    seen[key] = result, value  # `value` is kept so that no other object gets its id
    return result


def _plain(value: Opaque, seen: dict, depth: int) -> Any:
    """What is inside an omegaconf node, a Namespace or a kind of dict; else the object itself, its parts finished."""
    package, _, name = value.name.rpartition(".")
    if package.startswith("omegaconf") and isinstance(value.state, dict):
        for inside in ("_content", "_val"):
            if inside in value.state:
                return finished(value.state[inside], seen, depth)
    if name in _MAPPING_TYPES:
        return finished({**value.items, **(value.state if isinstance(value.state, dict) else {})}, seen, depth)
    seen[id(value)] = value, value
    value.args, value.state = finished(value.args, seen, depth), finished(value.state, seen, depth)
    value.items, value.entries = finished(value.items, seen, depth), finished(value.entries, seen, depth)
    return value


class _Machine:
    """The stack and memo of a pickle, and what each opcode does to them."""

    def __init__(self, known, persistent, file, room, harmless):
        self.known, self.persistent, self.file, self.room, self.harmless = known, persistent, file, room, harmless
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def step(self, opcode: str, argument: Any) -> None:
        if opcode in _CONSTANTS:
            self.stack.append(argument)
        elif opcode in _FRESH:
            self.stack.append(_FRESH[opcode]())
        elif opcode in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif opcode in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif opcode == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif opcode in ("TUPLE1", "TUPLE2", "TUPLE3"):
            n = int(opcode[-1])
            self.stack[-n:] = [tuple(self.stack[-n:])]
        elif opcode not in ("PROTO", "FRAME", "STOP"):
            method = getattr(self, "_" + opcode.lower(), None)
            if method is None:
                raise UserError(f"{self.file}: refused: the pickle opcode {opcode}, which no checkpoint needs.")
            method(argument)

    def spend(self, *values: Any) -> None:
        """Takes from the room what a copy of the values takes at most: theirs, not that of the values in them."""
        for value in values:
            if isinstance(value, np.ndarray):
                self.room -= value.nbytes if value.flags.owndata else 0
            elif isinstance(value, (str, bytes, bytearray)):
                self.room -= len(value)
            elif isinstance(value, (tuple, list, dict, set, frozenset)):
                self.room -= 64 * len(value)
        if self.room < 0:
            raise UserError(f"{self.file}: refused: it would make far more values than it holds. {_LESS}")

    def find(self, module: str, name: str) -> Any:
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError("a global's name is no string")
        self.spend(module, name)
        if (module, name) in self.known:
            return self.known[module, name]
        full = f"{module}.{name}"
        if (
            name.isidentifier()
            and name.lstrip("_")[:1].isupper()
            and any(module == package or module.startswith(package + ".") for package in self.harmless)
        ):
            return Known(full, lambda *args: Opaque(full, args))
        raise UserError(
            f"{self.file}: refused: {full}. A checkpoint of arrays doesn't need it, and loading it in Python could run "
            "code. Where you trust the file: load it with the code that wrote it, and save only the state_dict."
        )

    def call(self, function: Any, args: Any) -> Any:
        if not isinstance(function, Known) or not isinstance(args, tuple):
            raise UserError(
                f"{self.file}: refused: it calls a {type(function).__name__}, where only names may be called."
            )
        self.spend(*args)
        result = function.make(*args)
        self.spend(result if isinstance(result, np.ndarray) else None)
        return result

    def above_mark(self) -> list:
        for i in reversed(range(len(self.stack))):
            if self.stack[i] is _MARK:
                items = self.stack[i + 1 :]
                del self.stack[i:]
                return items
        raise ValueError("no mark")

    def set_pairs(self, flat: list) -> None:
        target = self.stack[-1]
        if isinstance(target, Opaque):
            target = target.items
        if not isinstance(target, dict) or len(flat) % 2:
            raise TypeError(f"items are set in a {type(target).__name__}")
        with_keys(target, zip(flat[::2], flat[1::2], strict=True))

    def extend(self, items: list) -> None:
        target = self.stack[-1]
        if isinstance(target, Opaque):
            target = target.entries
        if not isinstance(target, list):
            raise TypeError(f"items are appended to a {type(target).__name__}")
        target.extend(items)

    # One method an opcode, by its name in pickletools.

    def _mark(self, _):
        self.stack.append(_MARK)

    def _pop(self, _):
        self.stack.pop()

    def _pop_mark(self, _):
        self.above_mark()

    def _dup(self, _):
        self.stack.append(self.stack[-1])

    def _list(self, _):
        self.stack.append(self.above_mark())

    def _tuple(self, _):
        self.stack.append(tuple(self.above_mark()))

    def _dict(self, _):
        flat = self.above_mark()
        self.stack.append({})
        self.set_pairs(flat)

    def _frozenset(self, _):
        self.stack.append(frozenset(map(checked_key, self.above_mark())))

    def _append(self, _):
        self.extend([self.stack.pop()])

    def _appends(self, _):
        self.extend(self.above_mark())

    def _setitem(self, _):
        pair = self.stack[-2:]
        del self.stack[-2:]
        self.set_pairs(pair)

    def _setitems(self, _):
        self.set_pairs(self.above_mark())

    def _additems(self, _):
        items = self.above_mark()
        if not isinstance(self.stack[-1], set):
            raise TypeError("items are added to what is no set")
        self.stack[-1].update(map(checked_key, items))

    def _global(self, argument):
        module, _, name = argument.partition(" ")
        self.stack.append(self.find(module, name))

    def _stack_global(self, _):
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(self.find(module, name))

    def _reduce(self, _):
        args, function = self.stack.pop(), self.stack.pop()
        self.stack.append(self.call(function, args))

    _newobj = _reduce

    def _newobj_ex(self, _):
        options, args, function = self.stack.pop(), self.stack.pop(), self.stack.pop()
        result = self.call(function, args)
        if options and isinstance(result, Opaque):
            self.spend(options)
            result.items.update(options)
        self.stack.append(result)

    def _inst(self, argument):
        module, _, name = argument.partition(" ")
        self.stack.append(self.call(self.find(module, name), tuple(self.above_mark())))

    def _obj(self, _):
        function, *args = self.above_mark()
        self.stack.append(self.call(function, tuple(args)))

    def _build(self, _):
        state, target = self.stack.pop(), self.stack[-1]
        self.spend(state, *(state if isinstance(state, tuple) else ()))
        if isinstance(target, Pending):
            target.build(state)
        elif isinstance(target, Opaque):
            target.state = state
        # a dict or an array has attributes beside its content (a state dict's _metadata, a Parameter's hooks): left out

    def _persid(self, argument):
        self.stack.append(self.persistent(argument))

    def _binpersid(self, _):
        self.stack.append(self.persistent(self.stack.pop()))


# pickletools decodes their argument.
_CONSTANTS = frozenset(
    (
        "INT",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG",
        "LONG1",
        "LONG4",
        "FLOAT",
        "BINFLOAT",
        "STRING",
        "BINSTRING",
        "SHORT_BINSTRING",
        "BINBYTES",
        "SHORT_BINBYTES",
        "BINBYTES8",
        "BYTEARRAY8",
        "UNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE",
        "BINUNICODE8",
    )
)
_FRESH = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
    "EMPTY_TUPLE": tuple,
}

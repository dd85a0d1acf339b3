"""Read a pickle as data: nothing that it names is imported, called or changed.

Pickle is a program for a stack machine whose instructions make lists and dicts, and call what the file names. This
machine makes lists and dicts only: a name stays a `Global`, a call becomes an `Instance` that records its arguments,
and attributes stay a dict. So a hostile file can describe anything and run nothing, and a friendly one shows what its
objects hold although their classes are not installed. `pickletools` of the standard library decodes the instructions
(protocols 0 to 5).
"""

import io
import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

MAX_INSTRUCTIONS = 10_000_000  # a checkpoint has thousands; the limit bounds memory and time

_MARK = object()
_SCALARS = (str, bytes, int, float, bool, type(None))
_DICTS = {"builtins.dict", "__builtin__.dict"}
_DICTS |= {f"collections.{name}" for name in ("OrderedDict", "defaultdict", "Counter")}
_SETS = {f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("set", "frozenset")}
_RECONSTRUCTORS = {"copyreg._reconstructor", "copy_reg._reconstructor"}


class PickleError(ValueError):
    """The bytes are not a whole pickle, or have too many instructions."""


@dataclass(frozen=True)
class Global:
    """A class or function, by name."""

    path: str  # module and name


@dataclass(eq=False, repr=False)  # a pickle can nest values so that to show, compare or hash them takes forever
class Instance:
    """What calling `made_by` would have made. `state` are its attributes, `items` what was appended or added to it."""

    made_by: object
    arguments: tuple[object, ...] = ()
    state: object = None
    items: list[object] = field(default_factory=list)
    entries: dict[object, object] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """The name of the class or function; empty if that is a value too."""
        return self.made_by.path if isinstance(self.made_by, Global) else ""

    @property
    def attributes(self) -> dict[object, object]:
        """The attributes by name; slots too."""
        states = self.state if isinstance(self.state, tuple) and len(self.state) == 2 else (self.state,)
        return {key: value for state in states if isinstance(state, dict) for key, value in state.items()}


@dataclass(frozen=True, eq=False, repr=False)
class _Key:
    """A key that is not a plain value; it equals itself only, so that no hash of nested values is computed."""

    value: object


def read_pickle(
    data: io.BytesIO,
    persistent: Callable[[object], object] | None = None,
    call: Callable[[Instance], object] | None = None,
) -> Any:
    """Read one pickle from `data`, which is left behind its end. Raises PickleError.

    `persistent` is given each persistent id and returns its value. `call` is given each call, and returns what stands
    for its result: the `Instance` itself, or a value for it.
    """
    machine = _Machine(persistent, call)
    try:
        for count, (code, argument, _) in enumerate(pickletools.genops(data)):
            if count > MAX_INSTRUCTIONS:
                raise PickleError(f"it has more than {MAX_INSTRUCTIONS:,} instructions")
            if code.name == "STOP":
                break
            machine.run(code.name, argument)
        return machine.stack[-1]
    except PickleError:
        raise
    except MemoryError:
        raise PickleError("it wants more memory than there is") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise PickleError(str(error)) from None


class _Machine:
    """The stack and the memo of one pickle."""

    def __init__(
        self, persistent: Callable[[object], object] | None, call: Callable[[Instance], object] | None
    ) -> None:
        self.stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._persistent, self._call = persistent, call

    def run(self, name: str, argument: Any) -> None:
        """Run one instruction."""
        if name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif instruction := _INSTRUCTIONS.get(name):
            instruction(self, argument)
        elif name not in _NOTHING:  # a number or a string
            self.stack.append(argument)

    # Instructions; each has the argument that `pickletools` decoded, or None.

    def pop(self, _: None) -> None:
        """Drop the topmost value, or a mark."""
        self.stack.pop()

    def pop_mark(self, _: None) -> None:
        """Drop what is above the last mark."""
        self._since_mark()

    def duplicate(self, _: None) -> None:
        """Push the topmost value again."""
        self.stack.append(self.stack[-1])

    def get(self, index: int) -> None:
        """Push a value of the memo."""
        self.stack.append(self._memo[index])

    def put(self, index: int | None) -> None:
        """Put the topmost value into the memo."""
        self._memo[len(self._memo) if index is None else index] = self.stack[-1]

    def make_list(self, _: None) -> None:
        """Make a list."""
        self.stack.append(self._since_mark())

    def make_tuple(self, _: None) -> None:
        """Make a tuple."""
        self.stack.append(tuple(self._since_mark()))

    def short_tuple(self, count: int) -> None:
        """Make a tuple of the topmost values."""
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def make_dict(self, _: None) -> None:
        """Make a dict."""
        items = self._since_mark()
        self.stack.append({})
        self._set_items(items)

    def make_frozenset(self, _: None) -> None:
        """Make a frozenset."""
        self.stack.append(Instance(Global("builtins.frozenset"), items=self._since_mark()))

    def append(self, _: None) -> None:
        """Append a value to a list."""
        self._extend([self.stack.pop()])

    def extend(self, _: None) -> None:
        """Add values to a list or set."""
        self._extend(self._since_mark())

    def set_item(self, _: None) -> None:
        """Set an entry of a dict."""
        self._set_items([self.stack.pop(-2), self.stack.pop()])

    def set_items(self, _: None) -> None:
        """Set entries of a dict."""
        self._set_items(self._since_mark())

    def name(self, path: str) -> None:
        """Push a name; the argument is the module, a space and the name."""
        self.stack.append(Global(path.replace(" ", ".", 1)))

    def stack_name(self, _: None) -> None:
        """Push a name whose module and name are on the stack."""
        module, name = self.stack.pop(-2), self.stack.pop()
        self.stack.append(Global(f"{module:.200}.{name:.200}"))

    def extension(self, code: int) -> None:
        """Push a name of the table of extensions."""
        self.stack.append(Global(f"extension.{code}"))

    def reduce(self, _: None) -> None:
        """Call what is below a tuple of arguments."""
        arguments = self.stack.pop()
        self.stack.append(self._called(self.stack.pop(), arguments))

    def new_with_keywords(self, _: None) -> None:
        """Call what is below a tuple of arguments and a dict of keywords."""
        _keywords, arguments = self.stack.pop(), self.stack.pop()
        self.stack.append(self._called(self.stack.pop(), arguments))

    def instance(self, path: str) -> None:
        """Call a name with what is above the mark."""
        arguments = tuple(self._since_mark())
        self.stack.append(self._called(Global(path.replace(" ", ".", 1)), arguments))

    def call_object(self, _: None) -> None:
        """Call the first value above the mark with the others."""
        made_by, *arguments = self._since_mark()
        self.stack.append(self._called(made_by, tuple(arguments)))

    def build(self, _: None) -> None:
        """Set the attributes of an instance."""
        state = self.stack.pop()
        if isinstance(self.stack[-1], Instance):
            self.stack[-1].state = state

    def persistent(self, key: str) -> None:
        """Push what a persistent id means."""
        self.stack.append(self._persistent(key) if self._persistent else Instance(Global("persistent id"), (key,)))

    def stack_persistent(self, _: None) -> None:
        """Push what the persistent id on the stack means."""
        self.persistent(self.stack.pop())

    def next_buffer(self, _: None) -> None:
        """Refuse buffers that are not in the file."""
        raise PickleError("it keeps its buffers in another file")

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        (target.items if isinstance(target, Instance) else target).extend(items)

    def _since_mark(self) -> list[Any]:
        """Take off what is above the last mark, and the mark."""
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise PickleError("an instruction lacks its mark")
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items

    def _set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        entries = target.entries if isinstance(target, Instance) else target
        if not isinstance(entries, dict):
            raise PickleError("an entry is set in what is not a dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            entries[key if isinstance(key, _SCALARS) else _Key(key)] = value

    def _called(self, made_by: object, arguments: object) -> object:
        if not isinstance(arguments, tuple):
            raise PickleError("the arguments of a call are not a tuple")
        path = made_by.path if isinstance(made_by, Global) else ""
        if path in _RECONSTRUCTORS:  # of protocols 0 and 1: an instance without arguments
            made_by, arguments = arguments[0], ()
        if path in _DICTS:
            given = arguments[0] if arguments else None
            pairs = given.items() if isinstance(given, dict) else given if isinstance(given, list) else ()
            return {key: value for key, value in pairs if isinstance(key, _SCALARS)}
        instance = Instance(made_by, arguments)
        if path in _SETS and arguments and isinstance(arguments[0], list):
            instance.items = arguments[0]
        return self._call(instance) if self._call else instance


_CONSTANTS: dict[str, Callable[[], object]] = {
    "MARK": lambda: _MARK,
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": lambda: Instance(Global("builtins.set")),
}
_NOTHING = {"PROTO", "FRAME", "READONLY_BUFFER"}
_INSTRUCTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "POP": _Machine.pop,
    "POP_MARK": _Machine.pop_mark,
    "DUP": _Machine.duplicate,
    **dict.fromkeys(["GET", "BINGET", "LONG_BINGET"], _Machine.get),
    **dict.fromkeys(["PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"], _Machine.put),
    "LIST": _Machine.make_list,
    "TUPLE": _Machine.make_tuple,
    "TUPLE1": lambda machine, _: machine.short_tuple(1),
    "TUPLE2": lambda machine, _: machine.short_tuple(2),
    "TUPLE3": lambda machine, _: machine.short_tuple(3),
    "DICT": _Machine.make_dict,
    "FROZENSET": _Machine.make_frozenset,
    "APPEND": _Machine.append,
    **dict.fromkeys(["APPENDS", "ADDITEMS"], _Machine.extend),
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.stack_name,
    **dict.fromkeys(["EXT1", "EXT2", "EXT4"], _Machine.extension),
    **dict.fromkeys(["REDUCE", "NEWOBJ"], _Machine.reduce),
    "NEWOBJ_EX": _Machine.new_with_keywords,
    "INST": _Machine.instance,
    "OBJ": _Machine.call_object,
    "BUILD": _Machine.build,
    "PERSID": _Machine.persistent,
    "BINPERSID": _Machine.stack_persistent,
    "NEXT_BUFFER": _Machine.next_buffer,
}

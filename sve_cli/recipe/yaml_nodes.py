"""YAML text to a tree of nodes that remember their line. Nothing is ever evaluated or constructed.

PyYAML only supplies the event stream. Everything it gets wrong for a recipe is decided here: scalars follow the YAML 1.2 core
schema (`1e-3` is a number, `no` is text), a duplicate key is a problem, anchors, aliases and tags are refused, depth is bounded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

import yaml

from sve_cli.errors import RecipeError

MAX_DEPTH = 20
MAX_NUMBER_LENGTH = 100

# "refused": already reported as a problem, so nothing more is said about it.
Kind = Literal["null", "bool", "int", "float", "text", "list", "mapping", "refused"]

_NULLS = {"", "~", "null", "Null", "NULL"}
_BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
UNUSABLE = re.compile("[\x00\ud800-\udfff]")


@dataclass(frozen=True)
class Place:
    """Where something was written: a file and a line, or an override (no line)."""

    source: str
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


@dataclass(frozen=True)
class Problem:
    """One fault: where, at which key path ("" for none), what is wrong and what to write instead."""

    place: Place
    path: str
    what: str
    instead: str = ""

    def __str__(self) -> str:
        key = f" {self.path}:" if self.path else ""
        return f"{self.place}:{key} {self.what}" + (f" ({self.instead})" if self.instead else "")


@dataclass
class Node:
    """A scalar (`value`, and `text` as it was written), a list of nodes, or a mapping of key to node.

    The place of a mapping's value is the place of its key.
    """

    kind: Kind
    value: Any
    place: Place
    text: str = ""

    @property
    def items(self) -> list[Node]:
        return self.value if self.kind == "list" else []

    @property
    def entries(self) -> dict[str, Node]:
        return self.value if self.kind == "mapping" else {}

    def plain(self) -> Any:
        """The ordinary Python value."""
        if self.kind == "list":
            return [item.plain() for item in self.items]
        if self.kind == "mapping":
            return {key: item.plain() for key, item in self.entries.items()}
        return self.value


def report(problems: list[Problem]) -> RecipeError:
    """All problems as one error, in the order of the file, overrides last."""
    ordered = sorted(problems, key=lambda p: (p.place.line is None, p.place.line or 0))
    return RecipeError([str(problem) for problem in ordered])


def plain_scalar(text: str, place: Place) -> Node:
    """An unquoted scalar by the YAML 1.2 core schema."""
    if text in _NULLS:
        return Node("null", None, place, text)
    if text in _BOOLS:
        return Node("bool", _BOOLS[text], place, text)
    if len(text) <= MAX_NUMBER_LENGTH:
        if _INT.fullmatch(text):
            base = {"0o": 8, "0x": 16}.get(text[:2], 10)
            return Node("int", int(text, base), place, text)
        if _FLOAT.fullmatch(text):
            return Node("float", float(re.sub(r"\.(?=[inIN])", "", text)), place, text)
    return Node("text", text, place, text)


def from_python(value: Any, place: Place) -> Node:
    """Nodes from plain Python values (None, bool, int, float, str, lists, dictionaries).

    Raises:
        RecipeError: a value of another type.
    """
    if value is None:
        return Node("null", None, place, "null")
    kinds: dict[type, Kind] = {bool: "bool", int: "int", float: "float", str: "text"}
    if type(value) in kinds:
        return Node(kinds[type(value)], value, place, str(value))
    if isinstance(value, (list, tuple)):
        return Node("list", [from_python(item, place) for item in value], place)
    if isinstance(value, dict):
        return Node("mapping", {str(key): from_python(item, place) for key, item in value.items()}, place)
    raise report([Problem(place, "", f"a recipe cannot hold a {type(value).__name__}")])


def parse_yaml(text: str, source: str, *, numbered: bool = True) -> tuple[Node | None, list[Problem]]:
    """The node tree of one YAML document, and every problem found while building it.

    The tree is None when the text is not YAML, is empty, holds several documents or is nested too deeply.
    `numbered=False` leaves line numbers out (an override is one line).
    """
    builder = _Builder(source, numbered)
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):  # keeps its own stack; PyYAML's recursive composer is never used
            builder.take(event)
        if builder.root is None:
            builder.stop(1, "the file is empty", "a recipe needs model, data, task and method")
    except _Unreadable as stop:
        return None, [*builder.problems, stop.problem]
    except yaml.reader.ReaderError as error:
        what = f"the character U+{error.character:04X} is not allowed in YAML"
        return None, [*builder.problems, Problem(builder.place(text.count("\n", 0, error.position) + 1), "", what)]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = builder.place(mark.line + 1) if mark else builder.last
        return None, [*builder.problems, Problem(place, "", *_explain(error))]
    except (ValueError, OverflowError) as error:  # PyYAML lets a bad \U escape or version number through as these
        return None, [*builder.problems, Problem(builder.last, "", f"not valid YAML: {error}")]
    return builder.root, builder.problems


class _Unreadable(Exception):
    """Nothing after this problem can be understood."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


def _explain(error: yaml.MarkedYAMLError) -> tuple[str, str]:
    problem = error.problem or "it cannot be read"
    if "'\\t'" in problem:
        return "a tab cannot be used here", "indent with spaces"
    if "mapping values are not allowed" in problem:
        return "not valid YAML: a ':' where none can be", "check the indentation, or put text that contains ': ' in quotes"
    context = f" {error.context}" if error.context else ""
    return f"not valid YAML: {problem}{context}", ""


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1


@dataclass
class _Frame:
    """An open list or mapping; `key` is the mapping key whose value comes next."""

    node: Node
    key: str | None = None
    key_place: Place | None = None
    step: str = ""


@dataclass
class _Builder:
    """Turns YAML events into nodes, without recursion."""

    source: str
    numbered: bool
    root: Node | None = None
    problems: list[Problem] = field(default_factory=list)
    frames: list[_Frame] = field(default_factory=list)
    last: Place = field(init=False)
    documents: int = 0

    def __post_init__(self) -> None:
        self.last = self.place(1)

    def place(self, line: int) -> Place:
        return Place(self.source, line if self.numbered else None)

    def stop(self, line: int, what: str, instead: str = "") -> NoReturn:
        raise _Unreadable(Problem(self.place(line), self.path(), what, instead))

    def path(self) -> str:
        """The key path of what comes next."""
        path = ""
        for frame in self.frames:
            if frame.node.kind == "list":  # an open item is in its list already
                path += f"[{len(frame.node.items) - (frame is not self.frames[-1])}]"
            elif frame.key is not None:
                path += ("." if path else "") + frame.key
        return path

    def take(self, event: yaml.Event) -> None:
        self.last = self.place(_line(event))
        if isinstance(event, yaml.DocumentStartEvent):
            self.documents += 1
            if self.documents > 1:
                self.stop(_line(event), "a second document begins here", "keep one document; remove the '---'")
        elif isinstance(event, yaml.AliasEvent):
            self.refuse(f"the alias *{event.anchor} is refused", "write the value out")
            self.add_scalar(Node("refused", None, self.last))
        elif isinstance(event, yaml.NodeEvent):
            self.take_node(event)
        elif isinstance(event, yaml.CollectionEndEvent):
            self.frames.pop()
            self.close_value()

    def take_node(self, event: yaml.NodeEvent) -> None:
        if event.anchor is not None:
            self.refuse(f"the anchor &{event.anchor} is refused", "remove it")
        tag = getattr(event, "tag", None)
        if tag is not None:
            self.refuse(f"the tag {tag} is refused", "remove it; recipes hold plain values only")
        if isinstance(event, yaml.ScalarEvent):
            self.take_scalar(event)
            return
        if self.expects_key():
            self.stop(_line(event), "a key must be a single word", "a list or mapping cannot be a key")
        if len(self.frames) >= MAX_DEPTH:
            self.stop(_line(event), f"nested deeper than {MAX_DEPTH} levels", "a recipe needs four")
        kind: Kind = "list" if isinstance(event, yaml.SequenceStartEvent) else "mapping"
        node = Node(kind, [] if kind == "list" else {}, self.last)
        self.attach(node)
        self.frames.append(_Frame(node))

    def take_scalar(self, event: yaml.ScalarEvent) -> None:
        if UNUSABLE.search(event.value):
            self.refuse("the text holds a NUL character or half a surrogate pair", "remove it")
            self.add_scalar(Node("refused", None, self.last))
        elif event.tag is not None:
            self.add_scalar(Node("refused", None, self.last, event.value))
        elif event.style:
            self.add_scalar(Node("text", event.value, self.last, event.value))
        else:
            self.add_scalar(plain_scalar(event.value, self.last))

    def refuse(self, what: str, instead: str) -> None:
        self.problems.append(Problem(self.last, self.path(), what, instead))

    def expects_key(self) -> bool:
        return bool(self.frames) and self.frames[-1].node.kind == "mapping" and self.frames[-1].key is None

    def add_scalar(self, node: Node) -> None:
        if self.expects_key():
            self.frames[-1].key, self.frames[-1].key_place = node.text, node.place
            return
        self.attach(node)
        self.close_value()

    def close_value(self) -> None:
        """The value of the innermost open key is complete."""
        if self.frames:
            self.frames[-1].key = None

    def attach(self, node: Node) -> None:
        if not self.frames:
            self.root = node
            return
        frame = self.frames[-1]
        if frame.node.kind == "list":
            frame.node.value.append(node)
            return
        assert frame.key is not None and frame.key_place is not None
        node.place = frame.key_place
        first = frame.node.value.setdefault(frame.key, node)
        if first is not node:
            what = f"written twice, on lines {first.place.line} and {node.place.line}"
            self.problems.append(Problem(node.place, self.path(), what, "keep one of the two"))

"""Collectives: what a compiled program sends between devices, read from its text.

Bytes are those that a device receives: of n devices, (n - 1) / n of what an all-gather, a
reduce-scatter or an all-to-all makes or takes whole, twice that of an all-reduce, all of a permute.
A loop whose number of turns stands in the text counts that often. A loop that ends when its
data say so is one over tokens, and what is in it is of a token; where loops follow each other, of
the one that moves most; what stands in a loop around such loops is of a change of shape. Of
branches the one that moves most counts.
"""

import math
import re
from collections.abc import Iterable
from typing import NamedTuple

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
WIDTHS = {"pred": 1, "bf16": 2, "f16": 2, "c64": 8, "c128": 16}  # of others the name says it

COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
OPERATION = re.compile(r"\s([a-z][\w\-]*)\(")
ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
CALLED = re.compile(r"(?:calls|to_apply)=%?([\w.\-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.\-]+)")


class Moved(NamedTuple):
    """How many collectives, and what a device receives in them."""

    count: int = 0
    bytes: int = 0

    def __add__(self, other: "Moved") -> "Moved":
        return Moved(self.count + other.count, self.bytes + other.bytes)

    def times(self, turns: int) -> "Moved":
        return Moved(self.count * turns, self.bytes * turns)


Kinds = dict[str, Moved]


class Traffic(NamedTuple):
    """By kind: of a whole program, of each token and of each change of shape."""

    once: Kinds
    token: Kinds
    change: Kinds

    def total(self, tokens: int = 0, changes: int = 0) -> Moved:
        """All together, with so many tokens and changes of shape."""
        parts = ((self.once, 1), (self.token, tokens), (self.change, changes))
        return sum((amount(kinds).times(turns) for kinds, turns in parts), Moved())


class Program(NamedTuple):
    """A module's computations, each with its instructions as lines."""

    entry: str
    lines: dict[str, list[str]]


def traffic_of(text: str) -> Traffic:
    """What the compiled program `text` (`Compiled.as_text()`) sends."""
    program = parse(text)
    seen: dict[str, Traffic] = {}

    def of(name: str) -> Traffic:
        if name not in seen:
            seen[name] = in_turn(of_line(name, line) for line in program.lines.get(name, []))
        return seen[name]

    def of_line(inside: str, line: str) -> Traffic:
        operation = OPERATION.search(line)
        if operation is None:
            return NOTHING
        kind = operation[1].removesuffix("-start")
        if kind in KINDS:
            return Traffic(collective(kind, line, operation.start(), inside), {}, {})
        if kind == "while":
            body = called(line, "body")
            return repeated(of(body), turns(inside, line), loops_inside(body))
        if kind == "conditional":
            return max(map(of, branches(line)), key=lambda x: x.total(1, 1).bytes, default=NOTHING)
        return in_turn(of(name) for name in CALLED.findall(line))

    def turns(inside: str, line: str) -> int | None:
        condition, body = (called(line, part) for part in ("condition", "body"))
        return turns_of(line, *(program.lines.get(name, []) for name in (inside, condition, body)))

    def loops_inside(name: str) -> bool:
        """Whether a computation holds a loop over tokens."""
        for line in program.lines.get(name, []):
            operation = OPERATION.search(line)
            if operation is None or operation[1] not in ("while", "conditional", "call"):
                continue
            if operation[1] == "while" and turns(name, line) is None:
                return True
            inner = re.findall(r"(?:body|to_apply)=%?([\w.\-]+)", line) + branches(line)
            if any(map(loops_inside, inner)):
                return True
        return False

    return of(program.entry)


NOTHING = Traffic({}, {}, {})


def parse(text: str) -> Program:
    """The computations of a module."""
    entry, lines, name = "", {}, ""
    for line in text.splitlines():
        if header := COMPUTATION.match(line):
            name = header[2]
            lines[name] = []
            entry = name if header[1] else entry
        elif name and line.rstrip() == "}":  # not of a kernel's settings, which have lines too
            name = ""
        elif name and " = " in line:
            lines[name].append(line)
    return Program(entry, lines)


def in_turn(parts: Iterable[Traffic]) -> Traffic:
    """Of what happens one after the other."""
    once, token, change = {}, {}, {}
    for part in parts:
        once, change = added(once, part.once), added(change, part.change)
        token = max(token, part.token, key=lambda kinds: amount(kinds).bytes)
    return Traffic(once, token, change)


def repeated(body: Traffic, turns: int | None, loops: bool) -> Traffic:
    """A loop of `turns`; None: over tokens, or around such `loops`."""
    if turns is not None:
        return Traffic(
            {kind: moved.times(turns) for kind, moved in body.once.items()},
            body.token,
            {kind: moved.times(turns) for kind, moved in body.change.items()},
        )
    if loops:
        return Traffic({}, body.token, added(body.once, body.change))
    return Traffic({}, body.once, {})


def turns_of(line: str, inside: list[str], condition: list[str], body: list[str]) -> int | None:
    """How often a loop runs, if the program says so: as XLA found, or as its condition compares a
    count with a constant. It is taken to begin at 0 and to grow by 1 unless `inside`, where the
    loop stands, and its `body` say otherwise."""
    if known := re.search(r"known_trip_count[^\d}]*(\d+)", line):
        return int(known[1])
    given = operands(definition(operands(line)[0], inside))
    made = [definition(name, body) for name in operands(root_of(body))]

    def constant(name: str, lines: list[str]) -> int | None:
        """The constant that `name` is in the loop, which may be given it and leave it as it is."""
        found = definition(name, lines)
        if number := re.search(r"\sconstant\((\d+)\)", found):
            return int(number[1])
        at = element_of(found)
        kept = at is not None and at < len(made) and element_of(made[at]) == at
        return constant(given[at], inside) if kept and lines is not inside else None

    last = root_of(condition)
    if " compare(" not in last or "direction=LT" not in last:
        return None
    count, end = operands(last)
    at, bound = element_of(definition(count, condition)), constant(end, condition)
    if at is None or bound is None:
        return None
    start = constant(given[at], inside) if at < len(given) else None
    grown = made[at] if at < len(made) and " add(" in made[at] else ""
    steps = [step for name in operands(grown) if (step := constant(name, body))]
    return math.ceil((bound - (start or 0)) / (steps or [1])[0])


def root_of(lines: list[str]) -> str:
    """The line that a computation comes to."""
    return next((line for line in lines if line.lstrip().startswith("ROOT")), "")


def branches(line: str) -> list[str]:
    """The computations that a conditional has."""
    found = BRANCHES.findall(line)
    return [name for names in found for name in re.findall(r"[\w.\-]+", " ".join(names))]


def called(line: str, part: str) -> str:
    """The computation that a loop has for its `part`."""
    return re.search(rf"{part}=%?([\w.\-]+)", line)[1]


def definition(name: str, lines: list[str]) -> str:
    """The line that says what `name` is; empty where it is given from outside."""
    start = re.compile(rf"\s*(?:ROOT )?%?{re.escape(name)} = ")
    return next((line for line in lines if start.match(line)), "")


def operands(line: str) -> list[str]:
    """The names that an instruction is given."""
    operation = OPERATION.search(line)
    if operation is None:
        return []
    inner = line[operation.end() : line.find(")", operation.end())]
    return [name.split("%")[-1].split()[-1] for name in inner.split(",") if name.strip()]


def element_of(line: str) -> int | None:
    """Which element of a tuple an instruction takes, if that is what it does."""
    found = re.search(r" get-tuple-element\([^)]*\), index=(\d+)", line)
    return int(found[1]) if found else None


def collective(kind: str, line: str, end: int, inside: str) -> Kinds:
    """One instruction; its result's type stands before `end`."""
    result = line[line.index(" = ") : end]
    sizes = [bytes_of(*array) for array in ARRAY.findall(result)]
    if "-start(" in line and kind in ("all-gather", "collective-permute", "reduce-scatter"):
        # The result holds what is sent beside what is received.
        sizes = [min(sizes[:2])] if kind == "reduce-scatter" else [max(sizes)]
    size, devices = sum(sizes), group_size(line)
    if kind == "all-reduce" and "reduce-scatter" in inside:  # of which each keeps its part
        kind, size = "reduce-scatter", size // devices
    share = (devices - 1) / devices
    received = {
        "all-gather": size * share,
        "all-to-all": size * share,
        "all-reduce": 2 * size * share,
        "reduce-scatter": size * (devices - 1),
        "collective-permute": size,
    }[kind]
    return {kind: Moved(1, round(received))} if devices > 1 else {}


def group_size(line: str) -> int:
    """Devices among which a collective is; of a permute 2, as each receives from another."""
    if "source_target_pairs=" in line:
        return 2
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return len(listed[1].split(","))
    if counted := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(counted[1])
    if named := re.search(r"replica_groups=@?\w*\[([^\]]*)\]\s*\{([^}]*)\}", line):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", named[1]))
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", named[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    return 1


def bytes_of(dtype: str, sizes: str) -> int:
    """Of an array, from its type in the text."""
    bits = re.search(r"\d+", dtype)
    width = WIDTHS.get(dtype) or (max(1, int(bits[0]) // 8) if bits else 0)
    return width * math.prod(int(size) for size in sizes.split(",") if size)


def added(one: Kinds, other: Kinds) -> Kinds:
    """Both."""
    return {kind: one.get(kind, Moved()) + other.get(kind, Moved()) for kind in one | other}


def amount(kinds: Kinds) -> Moved:
    """Of all kinds."""
    return sum(kinds.values(), Moved())

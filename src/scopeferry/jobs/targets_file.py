"""The targets file of `live`: softcopy's ``targets.yaml``, with settings a target and for all of them.

A person writes it, so every mistake is named with its line: YAML that is none, a key that is unknown (with the nearest
valid one) or stands twice, a value of the wrong kind, a path in which an escape of double quotes has struck. Values
are read as the options of the same names read them, so ``settle: 10s`` means ``--settle 10s``; flags win over the file,
the file over configuration. Only nodes are read, nothing is ever constructed from what a file says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any, NamedTuple

from scopeferry.config import Setting, fold, nearest
from scopeferry.copying.target import Target, option
from scopeferry.errors import UsageError
from scopeferry.jobs.targets import check_rules
from scopeferry.logs import printable

MAX_BYTES = 4_000_000
ENDS = ("source", "destination")
#: option -> field of Target: what may stand below a target besides its ends and its name
OF_TARGET = {
    option(field.name): field.name
    for field in fields(Target)
    if field.name not in {*ENDS, "name", "settle_given"}
}  # fmt: skip
SETTINGS = tuple(key.replace("-", "_") for key in OF_TARGET)
DEFAULTS_LAYER, TARGET_LAYER = 6, 7  # above configuration and environment, below flags

ALONE = "a file alone must list targets; live follows folders, scopeferry transfer copies a file"

_SCALARS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "timestamp")}
_STRING = "tag:yaml.org,2002:str"
_STRUCK = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_NO_ROOT = re.compile(r"[A-Za-z]:(?![/\\]|$)")  # "D:\x41" has become D:A
_QUOTES = r"write paths in single quotes, 'D:\run1': in double quotes \ begins an escape"


def read_targets(
    path: str, *, configured: Iterable[Setting] = (), flags: Iterable[Setting] = (), only: bool = False
) -> list[Target]:
    """The targets of a file, each with its settings: `configured` < ``defaults`` < its own < `flags`.

    ``only``: the file was the one thing named, so it may have been meant as a source. Raises UsageError (SF-116 and,
    for a value, SF-109) naming file, line, and what to write instead.
    """
    file = _File(path, only=only)
    top = file.keys(file.root(), ("targets", "defaults"), "key of a targets file")
    below = [*configured]
    if "defaults" in top:
        below += file.settings(file.keys(top["defaults"].value, SETTINGS, "setting of a target"), DEFAULTS_LAYER)
    return [file.target(node, below, [*flags]) for node in file.items(top)]


def target_of(source: str, destination: str, settings: Iterable[Setting], name: str = "") -> Target:
    """A target with these settings, lowest layer first; those for all targets together are left aside."""
    held = fold("live", settings).values
    options = {field: held[key] for key, field in OF_TARGET.items() if key in held}
    return Target(source, destination, name, **options)


class _Key(NamedTuple):
    written: str
    node: Any
    value: Any


class _File:
    """A targets file that is being read. Mistakes are raised with its name and their line."""

    def __init__(self, path: str, *, only: bool) -> None:
        self.path = path
        self.hint = ALONE if only else ""
        self.text = self._decoded(self._bytes())
        self.loader: Any = None

    def _bytes(self) -> bytes:
        try:
            with open(self.path, "rb") as file:
                raw = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise UsageError(f"{printable(self.path)}: {error.strerror}", code="SF-116", path=self.path) from error
        if len(raw) > MAX_BYTES:
            raise self.wrong(None, "larger than any list of targets", self.hint)
        return raw

    def _decoded(self, raw: bytes) -> str:
        code = "utf-16" if raw.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
        try:
            return raw.decode(code)
        except UnicodeDecodeError as error:
            line = raw.count(b"\n", 0, error.start) + 1
            raise self.wrong(line, f"not {code.upper().removesuffix('-SIG')}", self.hint) from error

    def wrong(self, line: int | None, message: str, hint: str = "") -> UsageError:
        """What is wrong, and where."""
        place = printable(self.path) + (f":{line}" if line else "")
        return UsageError(f"{place}: {message}", code="SF-116", path=self.path, hint=hint)

    # -- nodes ---------------------------------------------------------------------------------------------------------

    def root(self) -> Any:
        """The top of the document."""
        import yaml

        try:
            self.loader = yaml.SafeLoader(self.text)
            node = self.loader.get_single_node()
        except yaml.reader.ReaderError as error:
            line = self.text.count("\n", 0, error.position) + 1
            raise self.wrong(line, f"not YAML: character {printable(chr(error.character))}", self.hint) from error
        except yaml.MarkedYAMLError as error:
            raise self._not_yaml(error) from error
        except RecursionError as error:
            raise self.wrong(None, "not a list of targets", self.hint) from error
        if node is None:
            raise self.wrong(None, "empty: it needs at least one target", self.hint)
        return node

    def _not_yaml(self, error: Any) -> UsageError:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(filter(None, (error.context, error.problem)))
        hint = self.hint
        if "quoted scalar" in problem:  # an unknown escape, or one that has eaten the closing quote
            hint = _QUOTES
            mark = error.context_mark or mark
        elif r"'\t'" in problem:
            hint = "indent with spaces, not with tabs"
        return self.wrong(_line(mark), f"not YAML: {printable(problem)}", hint)

    def keys(self, node: Any, valid: Iterable[str], what: str) -> dict[str, _Key]:
        """The entries of a mapping, each known and there once; what ``<<`` brings in counts less."""
        if not _is(node, "mapping"):
            raise self.wrong(_line(node.start_mark), f"not a mapping but {_kind(node)}", self._shape(valid))
        seen: dict[str, int] = {}
        for key, _ in node.value:
            written, line = key.value if _is(key, "scalar") else "", _line(key.start_mark)
            if written and written in seen:
                raise self.wrong(line, f"{printable(written)} stands twice, first in line {seen[written]}")
            seen[written] = line
        self._merge(node)
        found = {}
        for key, value in node.value:
            if not _is(key, "scalar") or key.value not in valid:
                raise self._unknown(key, valid, what)
            found[key.value] = _Key(key.value, key, value)
        return found

    def _merge(self, node: Any) -> None:
        import yaml

        try:
            self.loader.flatten_mapping(node)
        except yaml.MarkedYAMLError as error:
            raise self._not_yaml(error) from error

    def _unknown(self, key: Any, valid: Iterable[str], what: str) -> UsageError:
        written = str(key.value) if _is(key, "scalar") else _kind(key)
        near = nearest(written, valid)
        hint = f"did you mean {near}?" if near else f"known: {', '.join(valid)}"
        return self.wrong(_line(key.start_mark), f"{printable(written)} is no {what}", hint)

    def _shape(self, valid: Iterable[str]) -> str:
        return self.hint or f"write key: value lines; known: {', '.join(valid)}"

    # -- what they say -------------------------------------------------------------------------------------------------

    def items(self, top: Mapping[str, _Key]) -> list[Any]:
        """The nodes of the targets: at least one."""
        if "targets" not in top:
            raise self.wrong(1, "it has no targets", self.hint or "targets: is the key of the list")
        key = top["targets"]
        line = _line(key.node.start_mark)
        if not _is(key.value, "sequence"):
            raise self.wrong(line, f"targets is not a list but {_kind(key.value)}", "begin each target with - source:")
        if not key.value.value:
            raise self.wrong(line, "the list of targets is empty", "it needs at least one source and destination")
        return list(key.value.value)

    def target(self, node: Any, below: list[Setting], flags: list[Setting]) -> Target:
        """One target."""
        given = self.keys(node, (*ENDS, "name", *SETTINGS), "key of a target")
        for name in ENDS:
            if name not in given:
                raise self.wrong(
                    _line(node.start_mark), f"a target without {name}", "each needs source and destination"
                )
        texts = {name: self._text(given.pop(name)) for name in (*ENDS, "name") if name in given}
        settings = [*below, *self.settings(given, TARGET_LAYER), *flags]
        return target_of(texts["source"], texts["destination"], settings, texts.get("name", ""))

    def settings(self, given: Mapping[str, _Key], layer: int) -> Iterator[Setting]:
        """Settings as the flags of the same names would give them."""
        for key in given.values():
            place = f"{printable(self.path)}:{_line(key.node.start_mark)}: {key.written}"
            yield Setting(key.written.replace("_", "-"), self._value(key), place, layer)

    def _value(self, key: _Key) -> Any:
        if key.written != "finish":
            return self._scalar(key, key.value)
        nodes = key.value.value if _is(key.value, "sequence") else [key.value]
        return [self._rule(key, node) for node in nodes]

    def _rule(self, key: _Key, node: Any) -> str:
        rule = self._scalar(key, node)
        try:
            check_rules([rule])
        except UsageError as error:
            raise self.wrong(_line(node.start_mark), f"finish: {error}", error.hint) from error
        return rule

    def _text(self, key: _Key) -> str:
        line, node = _line(key.node.start_mark), key.value
        if not _is(node, "scalar") or node.tag != _STRING:
            hint = "put it in single quotes" if node.tag in _SCALARS else ""
            raise self.wrong(line, f"{key.written} is not a text but {_kind(node)}", hint)
        if not node.value:
            raise self.wrong(line, f"{key.written} is empty")
        return self._scalar(key, node)

    def _scalar(self, key: _Key, node: Any) -> str:
        line = _line(node.start_mark)
        if node.tag not in _SCALARS:
            raise self.wrong(line, f"{key.written} cannot be {_kind(node)}")
        if _STRUCK.search(node.value) or (node.style == '"' and _NO_ROOT.match(node.value)):
            raise self.wrong(line, f"{key.written} holds what is in no path: {printable(node.value)}", _QUOTES)
        return str(node.value)


def _is(node: Any, kind: str) -> bool:
    return bool(node.id == kind)


def _line(mark: Any) -> int:
    return int(mark.line) + 1


def _kind(node: Any) -> str:
    """What a node is, for a message."""
    if not _is(node, "scalar"):
        return {"sequence": "a list", "mapping": "a mapping"}[node.id]
    kind = node.tag.rpartition(":")[2]
    known = {"null": "nothing", "int": "a number", "float": "a number", "bool": "true or false", "timestamp": "a date"}
    return known.get(kind, f"{printable(node.value)!r}")

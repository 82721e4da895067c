"""YAML → tree: one document, no tags, no directives, bounded aliases, and no guessing at types.

Treadle takes libyaml's events and builds the data itself. PyYAML's own composer is recursive, drops repeated keys and
reads YAML 1.1, where `no` is false and `0123` is 83.
"""

import yaml
from yaml import events

from services.planner.faults import label, refusal, shown
from services.planner.tree import Builder, Plain, Row, Table

ALIASES_MAX = 10_000

_LINE_BREAKS = "\n\x85\u2028\u2029"
_NOTHING = frozenset({"", "~", "null", "Null", "NULL"})


def read_yaml(text: str, first_line: int) -> object:
    """The tree of a text; lines count from `first_line`. Raises `PlanFaults` for the first fault of syntax."""
    _refuse_directives(text, first_line)
    reader = _Reader(first_line)
    try:
        for event in yaml.parse(text, Loader=yaml.CSafeLoader):
            reader.take(event)
    except yaml.MarkedYAMLError as error:
        raise _syntax_fault(error, text, first_line) from None
    except yaml.YAMLError as error:
        raise refusal(f"not valid YAML: {label(str(error))}") from None
    if not reader.documents:
        raise refusal("the text holds no plan: it is empty")
    return reader.builder.root


def _refuse_directives(text: str, first_line: int) -> None:
    """libyaml compares each `%TAG` with all earlier ones: 32 MiB of them would take it hours."""
    directives = [0] if text.startswith("%") else []
    directives += [place for mark in _LINE_BREAKS if (place := text.find(f"{mark}%")) >= 0]
    if directives:
        line = first_line + text.count("\n", 0, min(directives) + 1)
        raise refusal('YAML directives (a line that begins with "%") are not accepted', line)


class _Reader:
    def __init__(self, first_line: int) -> None:
        self.builder = Builder()
        self.documents = 0
        self._first_line = first_line
        self._aliases = 0
        self._anchors: dict[str, tuple[object, int, int, int]] = {}
        """Finished nodes that have a name: value, weight, characters, levels. An open one isn't here: no cycles."""
        self._names: list[tuple[str | None, int, int]] = []
        """Of each open node: its anchor, and the builder's weight and characters when it was opened."""
        self._levels: list[int] = []
        """Of each open node: how many levels it holds so far."""

    def take(self, event: events.Event) -> None:
        line = self._first_line + (event.start_mark.line if event.start_mark else 0)
        match event:
            case events.ScalarEvent():
                self._scalar(event, line)
            case events.MappingStartEvent():
                self._start(Table(line), event, line)
            case events.SequenceStartEvent():
                self._start(Row(line), event, line)
            case events.MappingEndEvent() | events.SequenceEndEvent():
                self._end()
            case events.AliasEvent():
                self._alias(event, line)
            case events.DocumentStartEvent():
                self.documents += 1
                if self.documents > 1:
                    raise refusal('a second document begins here ("---"): one file holds one plan', line)
            case _:
                pass  # the stream's start and end, the document's end: nothing to build

    def _scalar(self, event: events.ScalarEvent, line: int) -> None:
        if event.tag is not None:
            raise _tag_refused(event.tag, line)
        text: str = event.value
        value = text if event.style else Plain(text)
        if event.anchor:
            self._anchors[event.anchor] = (value, 1, len(text), 0)
        if self.builder.wants_key:
            self.builder.key(text, line)
        else:
            self.builder.value(_null_or(value), line, chars=len(text))

    def _start(self, node: Table | Row, event: events.CollectionStartEvent, line: int) -> None:
        if event.tag is not None:
            raise _tag_refused(event.tag, line)
        if self.builder.wants_key:
            raise refusal("a mapping or a list can't be a key", line)
        self._names.append((event.anchor, self.builder.weight, self.builder.chars))
        self._levels.append(1)
        self.builder.open(node, line)

    def _end(self) -> None:
        node = self.builder.close()
        levels = self._levels.pop()
        anchor, weight, chars = self._names.pop()
        if anchor:
            self._anchors[anchor] = (node, self.builder.weight - weight, self.builder.chars - chars, levels)
        self._deepen(levels)

    def _deepen(self, levels: int) -> None:
        if self._levels:
            self._levels[-1] = max(self._levels[-1], levels + 1)

    def _alias(self, event: events.AliasEvent, line: int) -> None:
        self._aliases += 1
        if self._aliases > ALIASES_MAX:
            raise refusal(f"the plan has more than {ALIASES_MAX:,} aliases (*name)", line)
        name: str = event.anchor or ""
        known = self._anchors.get(name)
        if known is None:
            raise refusal(f"the alias *{label(name)} stands for nothing that ends before it", line)
        value, weight, chars, levels = known
        if self.builder.wants_key:
            raise refusal("an alias can't be a key: write the key out", line)
        self.builder.refuse_depth(self.builder.depth + levels, line)
        self.builder.value(_null_or(value), line, weight=weight, chars=chars)
        self._deepen(levels)


def _null_or(value: object) -> object:
    """As a key, an unquoted `null` is a word; as a value it is nothing."""
    return None if isinstance(value, Plain) and value in _NOTHING else value


def _tag_refused(tag: str, line: int) -> Exception:
    return refusal(f"YAML tags are not accepted: {shown(tag)}", line)


def _syntax_fault(error: yaml.MarkedYAMLError, text: str, first_line: int) -> Exception:
    mark = error.problem_mark or error.context_mark
    what = error.problem or "it can't be read"
    if mark is None:
        return refusal(f"not valid YAML: {what}")
    before = text[max(0, text.rfind("\n", 0, mark.index) + 1) : mark.index + 1]
    hint = "; indent with spaces, not with tabs" if "\t" in before and not before.strip() else ""
    return refusal(f"not valid YAML at column {mark.column + 1}: {what}{hint}", first_line + mark.line)

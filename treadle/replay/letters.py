"""What a terminal's encoding can't show, in letters that every one can."""

from __future__ import annotations

from rich.text import Text

_INSTEAD = {
    # Lanes: a corner of each kind, so that no task looks connected that is not.
    "│": "|", "┊": ":", "─": "-", "├": "+", "┤": "+", "┼": "+", "╰": "'", "┴": "'", "╮": ".", "┬": ".",
    # Tasks, each with a letter or sign of its own.
    "●": "*", "·": ",", "○": "o", "◌": "q", "▶": ">", "↻": "~", "⊘": "%", "✓": "v", "✕": "x", "∅": "/",
    # The timeline, and words.
    "━": "=", "✗": "f", "–": "-", "…": ".", "→": ">", "←": "<", "×": "x", "▏": "|",
}  # fmt: skip
_TABLE = str.maketrans(_INSTEAD)


def can_draw(encoding: str) -> bool:
    """Whether it has all that a replay draws with."""
    try:
        "".join(_INSTEAD).encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def in_letters(line: Text, encoding: str) -> Text:
    """The line with nothing in it that the encoding has not; what has no letter of its own becomes `?`."""
    if not can_draw(encoding):
        line.plain = line.plain.translate(_TABLE).encode(encoding, "replace").decode(encoding)
    return line

"""What comes from repositories, models and people is shown without the codes that would steer a terminal."""

import re
import unicodedata

MARKS_MAX = 4
"""Accents on one letter: no language needs more, and a pile of them covers the lines above and below."""

_ODD = re.compile(r"[^\x20-\x7e\n\t]+")
_INSTEAD = "\ufffd"
_UNSAFE_KINDS = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
"""Control characters, the marks that reorder or hide text, halves of surrogates, and what nobody knows the looks of."""
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""Letters and marks of other kinds that show nothing."""


def plain(text: str) -> str:
    """The text as a terminal may show it; a line may still be long."""
    return _ODD.sub(_shown, text.replace("\r\n", "\n"))


def one_line(text: str, width: int = 200) -> str:
    """The text's words on one line of at most `width` characters."""
    words = plain(" ".join(text.split()))
    return words if len(words) <= width else words[: width - 1] + "…"


def _shown(found: re.Match[str]) -> str:
    shown: list[str] = []
    marks = 0
    for char in found[0]:
        kind = unicodedata.category(char)
        marks = marks + 1 if kind in ("Mn", "Me") else 0
        unsafe = kind in _UNSAFE_KINDS or marks > MARKS_MAX or _INVISIBLE.match(char) is not None
        # A symbol's variant as a picture is the one use of these marks that people know.
        if char == "\ufe0f" and shown and unicodedata.category(shown[-1]) == "So":
            unsafe = False
        shown.append(_INSTEAD if unsafe else char)
    return "".join(shown)

"""What comes from repositories, models and people is shown without the codes that would steer a terminal."""

import re

_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")
"""Control characters but for newline and tab, and the marks that hide or reorder text."""


def plain(text: str) -> str:
    """The text as a terminal may show it; a line may still be long."""
    return _UNSAFE.sub("\ufffd", text.replace("\r\n", "\n"))


def one_line(text: str, width: int = 200) -> str:
    """The text's words on one line of at most `width` characters."""
    words = plain(" ".join(text.split()))
    return words if len(words) <= width else words[: width - 1] + "…"

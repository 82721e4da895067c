"""What a person gave that can't be used."""

from treadle.plain_text import one_line

_AROUND_CHARS = 20


class BadInput(Exception):
    """The text says what and why. Exit status 2."""


def not_utf8(error: UnicodeError, what: str = "what was given") -> BadInput:
    """What to raise for text in another encoding, which no gateway would take."""
    where = ""
    if isinstance(error, UnicodeEncodeError):
        around = error.object[max(0, error.start - _AROUND_CHARS) : error.end + _AROUND_CHARS]
        where = f", at “{one_line(around)}”"
    return BadInput(f"{what} is no text in UTF-8{where}: convert it first (iconv), or put it into a file that is one")

"""Finds what a program answers in what it printed."""

from __future__ import annotations

import json
import re

_BEGINS = re.compile(r"^[ \t]*(?=\{)", re.MULTILINE)
_FENCE = re.compile(r"^[ \t]*```[ \t]*$", re.MULTILINE)
_READ_MAX_CHARS = 64 * 1024 * 1024
"""Of all tries together: lines that look like the beginning of an object must not make this take for ever."""
_TOO_DEEP_CHARS = 64 * 1024


def last_object(output: str) -> str:
    """The last JSON object that begins a line, in a Markdown fence or not, exactly as it stands there.

    Where something begins like one and none can be read, it is that beginning and what follows, so that whoever reads
    it can say where the fault is. Empty: nothing looks like an object.
    """
    decoder, found, at, read, first_broken = json.JSONDecoder(), "", 0, 0, -1
    while read < _READ_MAX_CHARS and (begin := _BEGINS.search(output, at)) is not None:
        start = begin.end()
        try:
            _, end = decoder.raw_decode(output, start)
        except (json.JSONDecodeError, RecursionError) as fault:
            read += fault.pos - start if isinstance(fault, json.JSONDecodeError) else _TOO_DEEP_CHARS
            first_broken = start if first_broken < 0 else first_broken
            at = start + 1
        else:
            read += end - start
            found, at = output[start:end], end
    if found or first_broken < 0:
        return found
    fence = _FENCE.search(output, first_broken)
    return output[first_broken : fence.start() if fence else len(output)].rstrip()

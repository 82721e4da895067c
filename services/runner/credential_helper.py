"""Answers git's question for a password: once, and only when it is asked on behalf of the right host.

Git runs this file as a program (`credential.helper`), with the number of an inherited socket, a scheme, a host and
git's word for what it wants. The runner has put the answer into the socket beforehand. A socket, because no other
process can open it by way of /proc, as it could a pipe or a file.
"""

import os
import sys


def main(argv: list[str]) -> int:
    """What git asks is on standard input: lines of `key=value`. To anybody else's host the answer is silence."""
    number, scheme, host, action = argv
    asked = dict(line.rstrip("\n").partition("=")[::2] for line in sys.stdin)
    if action == "get" and (asked.get("protocol"), asked.get("host", "").lower()) == (scheme, host):
        while piece := os.read(int(number), 4096):
            sys.stdout.buffer.write(piece)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

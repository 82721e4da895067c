"""Runs first inside a sandbox, in the network namespace that has nobody else in it, and then becomes the real program.

It makes the sockets that the runner is to serve (the model's and the network's), hands them over and waits until the
runner has them. Called by its file's name with `<ports> -- <program> …`. It needs only what is built into Python:
nothing of Treadle exists inside, and `socket` and `signal` would double the time that every start takes.
"""

import os
import sys
from _signal import SIG_DFL, SIGPIPE, SIGXFSZ, signal  # type: ignore[import-not-found]  # typeshed has no stubs for it
from _socket import AF_INET, AF_UNIX, SCM_RIGHTS, SO_REUSEADDR, SOCK_SEQPACKET, SOCK_STREAM, SOL_SOCKET, socket

ADDRESS = "127.0.0.2"
"""Of what the runner serves: not 127.0.0.1, since a plan may want that to mean the machine (`network_allow`)."""
HAND_OVER = "/run/treadle/hand-over"
ANSWER_WITHIN_S = 20.0
TAKEN = b"+"
FAILED = "treadle-sandbox: "
"""What the line begins with that says why the program was not started."""
CANNOT_START = 127


def main(ports: str, argv: list[str]) -> None:
    """Does not return when all goes well."""
    try:
        if ports:
            hand_over([listen(int(port)) for port in ports.split(",")])
    except OSError as error:
        fail(f"its network could not be handed over to the runner: {error}")
    # Python ignores these, and what is ignored stays so in the program that follows.
    signal(SIGPIPE, SIG_DFL)
    signal(SIGXFSZ, SIG_DFL)
    try:
        os.execvp(argv[0], argv)  # noqa: S606 - becoming it is what this is for
    except OSError as error:
        words = f"{argv[0]} can't be started in the sandbox: {error.strerror}. Inside are the system's programs and "
        fail(f"{words}the directories of PATH; the runner's TREADLE_SANDBOX_READ names more")


def listen(port: int) -> socket:
    """A listening socket on loopback."""
    made = socket(AF_INET, SOCK_STREAM, 0)
    made.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    made.bind((ADDRESS, port))
    made.listen(64)
    return made


def hand_over(listening: list[socket]) -> None:
    """Sends the sockets to the runner, and forgets them once it has them."""
    runner = socket(AF_UNIX, SOCK_SEQPACKET, 0)
    runner.settimeout(ANSWER_WITHIN_S)
    runner.connect(HAND_OVER)
    descriptors = b"".join(made.fileno().to_bytes(4, sys.byteorder) for made in listening)
    runner.sendmsg([TAKEN], [(SOL_SOCKET, SCM_RIGHTS, descriptors)])
    if runner.recv(1) != TAKEN:
        raise OSError("it did not take it")
    runner.close()
    for made in listening:
        made.close()


def fail(words: str) -> None:
    """Ends this process with the words."""
    sys.stderr.write(f"{FAILED}{words}\n")
    sys.exit(CANNOT_START)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[3:])

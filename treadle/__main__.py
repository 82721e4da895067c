"""The entry point of the command: small, so that Ctrl-C is polite even while the rest is being loaded."""

import sys


def main() -> None:
    """Runs `treadle`; a Ctrl-C before it has begun ends it with 130 and no traceback."""
    try:
        from treadle.main import main as command

        command()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()

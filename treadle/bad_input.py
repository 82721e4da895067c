"""What a person gave that can't be used."""


class BadInput(Exception):
    """The text says what and why. Exit status 2."""

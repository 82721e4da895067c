"""What keeps the suite from running, in words for the person who asked for it."""


class SuiteError(Exception):
    """The message says what happened, to what, and what to do now; the command ends with status 2."""


class DataDirHeld(SuiteError):
    """Another process uses the data directory."""

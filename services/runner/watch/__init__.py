"""The pool `manual`: takes what people deliver from collaboration repositories; what it waits for is in the log."""

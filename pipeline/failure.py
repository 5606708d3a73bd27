"""The one exception a command line tells in a line: something failed that is neither a misuse nor a bug of a step."""


class RunError(RuntimeError):
    """A run ended without its result. The message is one line: what happened, what is kept, what to do."""

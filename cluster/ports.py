"""Free ports for servers that are told theirs before they start."""

import random
import socket

RANGE = range(20_000, 32_000)
"""Below what Linux hands out itself (32768 and up): there, between finding a port and using it, any connection of
another process may be given it, and the server ends with "address already in use"."""
TRIES = 100


def free_port(host: str = "127.0.0.1") -> int:
    """Find a port that nobody listens on; a number of its own each time it is asked for.

    Raises:
        OSError: there is none.
    """
    problem: OSError | None = None
    for port in random.SystemRandom().sample(RANGE, TRIES):
        with socket.socket() as probe:
            try:
                probe.bind((host, port))
            except OSError as error:
                problem = error
            else:
                return port
    raise OSError(f"of {TRIES} ports on {host} none is free ({problem})")

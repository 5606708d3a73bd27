"""The command line: recipes as subcommands, dotted flags for one-off changes, one clear line for a mistake.

Exit codes: 0 done, 1 failed, 2 misused, 130 interrupted. The only module that knows tyro.
"""

import contextlib
import io
import logging
import re
import signal
import sys
from collections.abc import Callable, Mapping
from types import FrameType
from typing import NoReturn, Protocol, TypeVar

import tyro


class JobConfig(Protocol):
    """What the command line needs to know of a job's configuration."""

    def check(self) -> None:
        """Raise ValueError if a value that only the command line can give is missing or wrong."""


Config = TypeVar("Config", bound=JobConfig)
CHECK_ONLY = "--check-only"
OWN_FLAGS = ("--verbose", CHECK_ONLY)
OWN_HELP = f"--verbose shows what Ray says; {CHECK_ONLY} reads the command line, complains or not, and does nothing."
FRAME = re.compile(r"[╭╮╰╯│─]+")


def main(
    job: Callable[[Config], object],
    recipes: Mapping[str, Callable[[], Config]],
    description: str,
    *,
    needs_ray: bool = True,
) -> NoReturn:
    """Parse the command line into a recipe's configuration, run the job, in Ray if it needs that, and exit."""
    arguments = [argument for argument in sys.argv[1:] if argument not in OWN_FLAGS]
    verbose = "--verbose" in sys.argv
    program = f"python -m {sys.modules['__main__'].__spec__.name}" if sys.modules["__main__"].__spec__ else sys.argv[0]
    config = parse(recipes, arguments, program, f"{description}\n\n{OWN_HELP}")
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(message)s", stream=sys.stderr)
    for name in ("pipeline", "jobs", "glipv2"):
        logging.getLogger(name).setLevel(logging.INFO)
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(_run(None if CHECK_ONLY in sys.argv else job, config, program, verbose, needs_ray))


def parse(
    recipes: Mapping[str, Callable[[], Config]], arguments: list[str], program: str = "", description: str = ""
) -> Config:
    """Build a configuration from a recipe's name and flags.

    Raises:
        SystemExit: 2 after one line on stderr for a mistake, 0 after help.
    """
    name = arguments[0] if arguments else ""
    if name in ("-h", "--help"):
        print(f"usage: {program} RECIPE [flags]\n\n{description}\n\nrecipes (--help after one lists its flags):")
        print("\n".join(f"  {key:16} {(recipe.__doc__ or '').splitlines()[0]}" for key, recipe in recipes.items()))
        sys.exit(0)
    if name not in recipes:
        given = f"unknown recipe {name!r}" if name else "no recipe given"
        print(f"{program}: {given}; allowed: {', '.join(recipes)}; {program} --help describes them", file=sys.stderr)
        sys.exit(2)
    default, said = recipes[name](), io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                type(default),
                prog=f"{program} {name}",
                args=arguments[1:],
                default=default,
                description=f"{recipes[name].__doc__}\n\n{description}",
            )
    except SystemExit as stop:
        if stop.code:
            print(f"{program}: {_one_line(said.getvalue())}", file=sys.stderr)
        raise


def _run(job: Callable[[Config], object] | None, config: Config, program: str, verbose: bool, needs_ray: bool) -> int:
    from pipeline.failure import RunError
    from pipeline.session import ray_session

    try:
        config.check()
        if job is None:
            return 0
        with ray_session(verbose=verbose) if needs_ray else contextlib.nullcontext():
            outcome = job(config)
        print(outcome)
    except KeyboardInterrupt:
        print("interrupted; give the same command again to go on", file=sys.stderr)
        return 130
    except (ValueError, OSError, RunError) as error:
        if verbose:
            raise
        print(f"{program}: {_one_line(str(error))}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    return 0


def _one_line(text: str) -> str:
    lines = (FRAME.sub(" ", line).strip() for line in text.splitlines())
    return "; ".join(line for line in lines if line)


def _terminate(signum: int, frame: FrameType | None) -> NoReturn:
    # A submitted job that is stopped gets SIGTERM: leave through the same door as Ctrl-C, so that runs are closed.
    raise KeyboardInterrupt

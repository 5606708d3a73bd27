"""Send a job to a cluster, follow its log, and end with its exit code.

``python -m cluster.submit pseudo_label photos --pairs /abs/pairs.tsv --teacher /abs/model --out /abs/dir``: what comes
before the job's name is for this command (``--help`` lists it), what comes after is the job's, as one would give it to
``python -m jobs.pseudo_label``. Ctrl-C only stops following; the job goes on.

Exit codes: the job's own (0 done, 1 failed, 2 misused), 130 for a job that was stopped and for Ctrl-C; before anything
is sent, 2 for a misuse and 1 where no head answers or it wants another token.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from cluster import job_environment
from cluster.follow import INTERRUPTED, Follower, connect
from cluster.package import ROOT, commit_of, pack
from jobs.cli import CHECK_ONLY
from pipeline.failure import RunError

PROGRAM = "python -m cluster.submit"
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"


def main(given: Sequence[str]) -> int:
    """Do what the command line says."""
    options = parse(given)
    try:
        if options.follow:
            return Follower(connect(options.address), options.address, options.follow).run(options.stop_on_interrupt)
        if options.arguments and {"-h", "--help"} & set(options.arguments):
            return run_here(options.job, options.arguments)
        return submit(options)
    except KeyboardInterrupt:
        print("interrupted before the job was sent", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, RunError) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1


def submit(options: argparse.Namespace) -> int:
    """Check everything that can be checked here, send the job, and follow it unless told not to.

    Raises:
        ValueError: the checkout, the environment or the package is not as it must be.
        RunError: no head answers, or it does not let us in.
    """
    commit = commit_of(ROOT, options.dirty)
    job_environment.check_arguments(options.arguments)
    environment = job_environment.job_environment(os.environ, options.env, commit)
    if code := run_here(options.job, [*options.arguments, CHECK_ONLY]):
        return code
    client = connect(options.address)
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "code.zip"
        size = pack(ROOT, package)
        name = send(client, options, {"working_dir": str(package), "env_vars": environment}, commit)
    if secrets := job_environment.held_back(os.environ):
        say(f"not sent, as whoever reaches the job server could read them: {', '.join(secrets)}; nodes use their own")
    say(f"{name} sent to {options.address} with {size / (1 << 20):.1f} MiB of code, commit {commit}")
    say(f"watch it at {options.address}/#/jobs/{name}")
    follower = Follower(client, options.address, name)
    if options.no_follow:
        say(follower.what_next())
        return 0
    return follower.run(options.stop_on_interrupt)


def send(client: Any, options: argparse.Namespace, runtime_env: dict[str, Any], commit: str) -> str:
    """Hand the job over and give its id.

    Raises:
        RunError: the job server refuses it, or is gone.
    """
    recipe = recipe_of(options.arguments)
    try:
        return str(
            client.submit_job(
                entrypoint=shlex.join(["python", "-m", f"jobs.{options.job}", *options.arguments]),
                submission_id=options.id or job_id(options.job, recipe, datetime.now(UTC)),
                runtime_env=runtime_env,
                metadata={"job": options.job, "recipe": recipe, "git_commit": commit},
                entrypoint_num_cpus=options.cpus,
                entrypoint_num_gpus=options.gpus,
                entrypoint_memory=options.memory_gib and int(options.memory_gib * (1 << 30)),
                entrypoint_resources=dict(options.resource) or None,
            )
        )
    except RuntimeError as error:
        reason = re.sub(r"\s+", " ", str(error))[-500:]
        raise RunError(f"the job server at {options.address} refused the job: {reason}") from error
    except OSError as error:
        raise RunError(
            f"the connection to {options.address} broke while the job was sent ({error}); see ray job list whether it "
            "arrived, then give the command again"
        ) from error


def run_here(job: str, arguments: Sequence[str]) -> int:
    """Have the job read a command line on this machine, so that a slip costs seconds and no cluster."""
    return subprocess.run([sys.executable, "-m", f"jobs.{job}", *arguments], cwd=ROOT, check=False).returncode


def jobs_there() -> list[str]:
    """Name the jobs: the modules in ``jobs`` that can be run."""
    return [
        file.stem for file in sorted((ROOT / "jobs").glob("*.py")) if "__main__" in file.read_text(encoding="utf-8")
    ]


def recipe_of(arguments: Sequence[str]) -> str:
    """Name the recipe of a job's command line; jobs that have none begin with a flag or a path."""
    return arguments[0] if arguments and re.fullmatch(r"[a-z0-9][a-z0-9-]*", arguments[0]) else ""


def job_id(job: str, recipe: str, now: datetime) -> str:
    """Make a readable id that sorts by time within a job and a recipe."""
    return "-".join(part for part in (job, recipe, f"{now:%Y%m%dT%H%M%SZ}") if part)


def say(text: str) -> None:
    """Tell the person, apart from the job's log on stdout."""
    print(text, file=sys.stderr, flush=True)


class _Parser(argparse.ArgumentParser):
    """Complains in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{PROGRAM}: {message}; {PROGRAM} --help lists the flags\n")


def parse(given: Sequence[str]) -> argparse.Namespace:
    """Read the command line: own flags, then the job's name, then everything that is the job's."""
    parser = _Parser(prog=PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    address = os.environ.get(ADDRESS_VARIABLE, DEFAULT_ADDRESS)
    add("--address", default=address, help=f"job server; ${ADDRESS_VARIABLE}, else {DEFAULT_ADDRESS}")
    add("--id", help="id of the job; by default <job>-<recipe>-<utc time>")
    add("--dirty", action="store_true", help="submit although files differ from the last commit; runs say so")
    add("--env", action="append", default=[], metavar="NAME[=VALUE]", help="one more variable for the job; no secrets")
    add("--stop-on-interrupt", action="store_true", help="Ctrl-C stops the job too, instead of only the following")
    add("--no-follow", action="store_true", help="send the job and return")
    add("--follow", metavar="ID", help="send nothing; follow a job that was sent before")
    add(
        "--cpus", type=float, help="CPUs for the job's own process, the driver; by default it runs on the head for none"
    )
    add("--gpus", type=float, help="GPUs for the driver, for jobs that compute in it (predict)")
    add("--memory-gib", type=float, help="memory for the driver")
    add("--resource", action="append", default=[], type=_amount, metavar="NAME=AMOUNT", help="for the driver")
    add("job", nargs="?", help=", ".join(jobs_there()))
    add("arguments", nargs=argparse.REMAINDER, help="the job's recipe and flags")
    options = parser.parse_args(given)
    options.address = _http(options.address).rstrip("/")
    if not options.follow and options.job not in jobs_there():
        what = f"unknown job {options.job!r}" if options.job else "no job given"
        parser.error(f"{what}; allowed: {', '.join(jobs_there())}")
    return options


def _http(address: str) -> str:
    return address if "://" in address else f"http://{address}"


def _amount(given: str) -> tuple[str, float]:
    name, _, amount = given.partition("=")
    return name, float(amount)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

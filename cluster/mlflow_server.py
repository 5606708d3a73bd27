"""A team's MLflow server: runs in PostgreSQL, artifacts in S3, and neither secret leaves the server.

``python -m cluster.mlflow_server --artifacts s3://bucket/mlflow --names mlflow.example.org``, with the database in the
environment: ``MLFLOW_BACKEND_STORE_URI=postgresql://mlflow@db.example.org/mlflow``, the password in ``PGPASSWORD`` or
in the file that ``PGPASSFILE`` names; S3 by the usual ``AWS_*`` variables (``MLFLOW_S3_ENDPOINT_URL`` where it is not
Amazon's). Artifacts go through the server: jobs need nothing but ``MLFLOW_TRACKING_URI``. The first start makes the
tables. It keeps nobody out: put it where only the team is, or behind a proxy that asks who comes.
"""

import argparse
import importlib.util
import os
import re
import sys
from collections.abc import Mapping, Sequence

PROGRAM = "python -m cluster.mlflow_server"
DATABASE = "MLFLOW_BACKEND_STORE_URI"
DRIVER = "psycopg"
"""What SQLAlchemy asks PostgreSQL by from 2.1 on, unless the address names another: ``postgresql+psycopg2://``."""
SETTINGS = {
    # Its processes for judging language models, which nobody here needs, and its news to its makers.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def main(given: Sequence[str]) -> int:
    """Check what is given, and become MLflow's server."""
    options = parse(given)
    try:
        check(options, os.environ)
    except ValueError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    os.execve(sys.executable, command(options), {**SETTINGS, **os.environ})


def parse(given: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--artifacts", required=True, help="where artifacts go: s3://bucket/path")
    parser.add_argument("--names", nargs="*", default=[], help="names or addresses it is called by, besides localhost")
    parser.add_argument("--host", default="127.0.0.1", help="address it listens at; 0.0.0.0 for all of the machine's")
    parser.add_argument("--port", type=int, default=5000, help="port it listens at")
    parser.add_argument("--workers", type=int, default=4, help="processes, of some 400 MB each")
    return parser.parse_args(given)


def check(options: argparse.Namespace, environ: Mapping[str, str]) -> None:
    """Find out what is wrong before MLflow does, and without repeating a password.

    Raises:
        ValueError: one line with what is missing.
    """
    found = re.match(r"postgresql(?:\+(\w+))?://", environ.get(DATABASE, ""))
    if found is None:
        raise ValueError(
            f"{DATABASE} is {'another database' if environ.get(DATABASE) else 'not set'}; set it to "
            "postgresql://user@host/database, and PGPASSWORD or PGPASSFILE"
        )
    if importlib.util.find_spec(driver := found[1] or DRIVER) is None:
        raise ValueError(f"{driver} is missing, by which PostgreSQL is asked; pip install 'psycopg[binary]'")
    if not options.artifacts.startswith("s3://"):
        raise ValueError(f"--artifacts is {options.artifacts}; give s3://bucket/path")
    if wrong := [name for name in options.names if not re.fullmatch(r"[\w.-]+", name)]:
        raise ValueError(f"--names has {wrong[0]}; give host names alone, without scheme and port")


def command(options: argparse.Namespace) -> list[str]:
    """Give MLflow's own command line.

    A name must be allowed as a host, or jobs are refused, and as an origin, or browsers' pages stay empty.
    """
    given = {"host": options.host, "port": options.port, "workers": options.workers}
    given |= {"artifacts-destination": options.artifacts}
    if options.names:
        from mlflow.server.security_utils import get_default_allowed_hosts

        named = [f"{name}{port}" for name in options.names for port in ("", ":*")]
        given["allowed-hosts"] = ",".join([*get_default_allowed_hosts(), *named])
        given["cors-allowed-origins"] = ",".join(f"{scheme}://{host}" for host in named for scheme in ("http", "https"))
    flags = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    return [sys.executable, "-m", "mlflow", "server", "--serve-artifacts", *flags]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What a submitted job takes along of the submitter's environment: addresses, never secrets.

Ray keeps a job's variables in plain text and gives them to everyone who can reach the job server (``ray job list``,
``/api/jobs/``; only to browsers the values are masked), and so it does with the command line. Secrets therefore do not
travel with a job. The nodes have their own: an instance role, variables that their shell or pod started with, or files
on them (``AWS_SHARED_CREDENTIALS_FILE``, ``~/.mlflow/credentials``).
"""

import re
from collections.abc import Mapping, Sequence

from pipeline.session import ENVIRONMENT
from pipeline.tracking import COMMIT

PASSED = (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_S3_ENDPOINT_URL",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_EC2_METADATA_DISABLED",
    "HF_ENDPOINT",
    "HF_HUB_OFFLINE",
)
"""Variables that mean the same on every machine and are passed wherever they are set."""
SECRET = re.compile(
    r"(SECRET|PASSWORD|PASSWD|PASS|PWD|TOKEN|(?<!APPLICATION_)CREDENTIALS?|(API|ACCESS|PRIVATE|SECRET)_?KEY)(_ID)?$",
    re.IGNORECASE,
)
"""Names of variables whose value is a secret; ``…_TOKEN_FILE`` and the like only say where one lies."""
PASSWORD_IN_ADDRESS = re.compile(
    r"[a-z][a-z0-9+.-]*://[^/\s@]*:[^/\s@]+@|https?://[^/\s@]+@"
    r"|[?&](X-Amz-Signature|sig|([a-z]+_)?token|password|passwd|pass|pwd|secret|(api_?)?key)=",
    re.IGNORECASE,
)
"""An address that anyone who reads it may use in the name of another."""
SERVICES = ("AWS_", "MLFLOW_", "HF_", "GOOGLE_", "WANDB_")


def job_environment(environ: Mapping[str, str], asked: Sequence[str], commit: str) -> dict[str, str]:
    """Choose the variables of a job.

    Args:
        environ: the submitter's variables.
        asked: further ones, ``NAME`` as it is set here or ``NAME=VALUE`` as it shall be there.
        commit: what the job's runs will call their code.

    Raises:
        ValueError: one of them is a secret, or is not set.
    """
    chosen = {name: environ[name] for name in PASSED if environ.get(name)}
    for given in asked:
        name, equals, value = given.partition("=")
        if not equals and name not in environ:
            raise ValueError(f"--env {name} is not set here; set it, or give --env {name}=VALUE")
        chosen[name] = value if equals else environ[name]
    for name, value in chosen.items():
        if SECRET.search(name):
            raise ValueError(f"{name} is a secret, and whoever reaches the job server could read it; {_INSTEAD}")
        if PASSWORD_IN_ADDRESS.search(value):
            raise ValueError(
                f"the address in {name} has a password, which whoever reaches the job server could read; "
                f"leave it out there ({_INSTEAD})"
            )
    return {**ENVIRONMENT, **chosen, COMMIT: commit}


def check_arguments(arguments: Sequence[str]) -> None:
    """Refuse a command line with a password in an address; it is shown wherever the job is.

    Raises:
        ValueError: there is one; the message does not repeat it.
    """
    for number, argument in enumerate(arguments):
        if PASSWORD_IN_ADDRESS.search(argument):
            after = f"after {arguments[number - 1]} " if number else ""
            raise ValueError(f"the address {after}has a password, and a job's command line is shown to all; {_INSTEAD}")


def held_back(environ: Mapping[str, str]) -> list[str]:
    """Name the secrets of the services that jobs use: they are set here and stay here."""
    return sorted(name for name in environ if name.startswith(SERVICES) and SECRET.search(name))


_INSTEAD = (
    "give it to the nodes: a role, the environment they start with, or a file there that a variable names, such as "
    "--env AWS_SHARED_CREDENTIALS_FILE=/abs/path"
)

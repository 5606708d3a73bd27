"""Talk with a cluster's job server: connect, follow a job's log to its end, and say how it ended."""

import asyncio
import logging
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from pipeline.failure import RunError

INTERRUPTED = 130
CONNECT_S = 10
PATIENCE_S = 120
"""How long a head may be silent before it is given up."""
POLL_S = 1


def connect(address: str) -> Any:
    """Open a client of the job server.

    Raises:
        RunError: nothing answers there, or it wants a token that we have not.
    """
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"--address is {address}; give the job server's, http://HOST:8265 (the dashboard's)")
    try:
        socket.create_connection(
            (parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)), CONNECT_S
        ).close()
    except OSError as error:
        raise RunError(f"no head answers at {address} ({error}); start one (make cluster) or give --address") from error
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        os.environ.pop(name, None)  # for Ray's client they count more than the address it is given
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray.dashboard.modules.dashboard_sdk").setLevel(logging.WARNING)
    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.ERROR)
    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise RunError(_not_let_in(address, str(error))) from error
    except (OSError, RuntimeError, ValueError) as error:
        raise RunError(
            f"{address} is no job server of Ray ({str(error).splitlines()[0]}); give the dashboard's"
        ) from error


def _not_let_in(address: str, said: str) -> str:
    mode = os.environ.get("RAY_AUTH_MODE", "not set")
    where = os.environ.get("RAY_AUTH_TOKEN_PATH") or ("RAY_AUTH_TOKEN" if "RAY_AUTH_TOKEN" in os.environ else "")
    if where.startswith("/") and not Path(where).is_file():
        where += ", which is not there"
    if "failed" in said.splitlines()[0]:
        return (
            f"{address} refuses the token of {where or '~/.ray/auth_token'}; give the cluster's in RAY_AUTH_TOKEN_PATH"
        )
    return (
        f"{address} wants a token, and none was sent (RAY_AUTH_MODE is {mode}, token in {where or 'no variable'}); "
        "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=/abs/file"
    )


class Follower:
    """Follows one job."""

    def __init__(self, client: Any, address: str, job: str) -> None:
        """Take a client, its address for what is said, and the job's id."""
        self._client, self._address, self._job = client, address, job
        self._shown = 0  # characters of the log; a log that is asked for again begins anew

    def run(self, stop_on_interrupt: bool) -> int:
        """Print the log until the job has ended, and give its exit code; Ctrl-C ends this, and the job if so told.

        Raises:
            RunError: the head was silent for too long, or knows no such job.
        """
        try:
            return self._wait()
        except KeyboardInterrupt:
            if not stop_on_interrupt:
                return self._leave()
        print(f"\nstopping {self._job}; a second Ctrl-C leaves it to itself", file=sys.stderr, flush=True)
        try:
            self._client.stop_job(self._job)
            return self._wait()
        except KeyboardInterrupt:
            return self._leave()
        except (RuntimeError, OSError) as error:
            if isinstance(error, RunError):
                raise
            raise RunError(f"{self._job} was not stopped ({error}); {self.what_next().splitlines()[1]}") from error

    def _leave(self) -> int:
        print(f"\n{self._job} goes on\n{self.what_next()}", file=sys.stderr)
        return INTERRUPTED

    def what_next(self) -> str:
        """Say how to follow the job, and how to stop it."""
        return (
            f"follow it: python -m cluster.submit --address {self._address} --follow {self._job}\n"
            f"stop it: ray job stop --address {self._address} {self._job}"
        )

    def _wait(self) -> int:
        from ray.exceptions import AuthenticationError

        heard = time.monotonic()
        while True:
            try:
                asyncio.run(self._print_log())
                info = self._client.get_job_info(self._job)
            except AuthenticationError as error:  # another head, with another token
                raise RunError(_not_let_in(self._address, str(error))) from error
            except (RuntimeError, OSError, aiohttp.ClientError) as error:
                if "does not exist" in str(error) or getattr(error, "status", 0) == 404:
                    raise RunError(
                        f"{self._address} knows no job {self._job}; ray job list shows those it knows"
                    ) from error
                if time.monotonic() - heard > PATIENCE_S:
                    raise RunError(
                        f"no word from {self._address} for {PATIENCE_S} s; {self.what_next().splitlines()[0]}"
                    ) from error
            else:
                heard = time.monotonic()
                if info.status.is_terminal():
                    return self._end(info)
            time.sleep(POLL_S)

    async def _print_log(self) -> None:
        position = 0
        async for text in self._client.tail_job_logs(self._job):
            new = text[max(0, self._shown - position) :]
            position += len(text)
            print(new, end="", flush=True)
            self._shown = max(self._shown, position)

    def _end(self, info: Any) -> int:
        code = exit_code(info.status.value, info.driver_exit_code)
        why = (
            ""
            if info.driver_exit_code is not None or code == 0
            else f": {' '.join((info.message or '').split())[:500]}"
        )
        print(f"{self._job} ended: {info.status.value}, exit code {code}{why}", file=sys.stderr)
        return code


def exit_code(status: str, driver_exit_code: int | None) -> int:
    """Give the code a shell would have seen, had the job run in it."""
    if status == "STOPPED":
        return INTERRUPTED
    if driver_exit_code is None:
        return 0 if status == "SUCCEEDED" else 1
    return 128 - driver_exit_code if driver_exit_code < 0 else driver_exit_code

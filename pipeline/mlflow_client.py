"""How MLflow's stores are asked: quietly, and with a line where they do not answer or do not let in."""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.failure import RunError


class AwayError(RunError):
    """MLflow does not answer, for as long as its own retries go (``MLFLOW_HTTP_REQUEST_MAX_RETRIES``: four minutes)."""

    def __init__(self, uri: str, told: str) -> None:
        """Say so."""
        super().__init__(
            f"MLflow at {shown(uri)} does not answer ({told}); whatever was made is kept: give the same command again "
            "when it does"
        )


def open_client(uri: str) -> Any:
    """Open a store, quietly."""
    import mlflow

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return mlflow.MlflowClient(tracking_uri=uri)


@contextmanager
def asking(uri: str) -> Iterator[Any]:
    """Ask a store something.

    Raises:
        AwayError: it does not answer.
        RunError: it does not let in, or it is no store.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported
    from mlflow.exceptions import MlflowException  # takes seconds

    try:
        yield open_client(uri)
    except MlflowException as error:
        status, told = error.get_http_status_code(), shown(str(error).strip().splitlines()[0][:300])
        if status >= 500 or status == 429:
            raise AwayError(uri, told) from error
        if status in (401, 403):
            raise RunError(
                f"MLflow at {shown(uri)} does not let in ({told}); give MLFLOW_TRACKING_USERNAME and _PASSWORD or "
                "MLFLOW_TRACKING_TOKEN, or name the host of MLFLOW_TRACKING_URI in the server's --allowed-hosts"
            ) from error
        raise RunError(f"MLflow at {shown(uri)} refuses ({told}); see MLFLOW_TRACKING_URI") from error


def shown(uri: str) -> str:
    """Give an address without the password that may be in it."""
    return re.sub(r"//[^/@\s]*@", "//…@", uri)

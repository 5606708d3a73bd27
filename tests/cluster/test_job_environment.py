"""What travels with a job, and what never does."""

import pytest

from cluster.job_environment import check_arguments, held_back, job_environment
from pipeline.tracking import COMMIT

HERE = {
    "MLFLOW_TRACKING_URI": "http://mlflow:5000",
    "AWS_ENDPOINT_URL_S3": "http://minio:9000",
    "AWS_PROFILE": "mine",
    "AWS_ACCESS_KEY_ID": "AKIA",
    "AWS_SECRET_ACCESS_KEY": "s3cr3t",
    "AWS_SESSION_TOKEN": "s3cr3t",
    "MLFLOW_TRACKING_PASSWORD": "s3cr3t",
    "HF_TOKEN": "s3cr3t",
    "HOME": "/home/me",
}


def test_addresses_and_the_commit_travel_and_nothing_else_of_the_submitter() -> None:
    sent = job_environment(HERE, [], "abc")
    assert {name: sent[name] for name in sent if name in HERE} == {
        "MLFLOW_TRACKING_URI": "http://mlflow:5000",
        "AWS_ENDPOINT_URL_S3": "http://minio:9000",
    }
    assert sent[COMMIT] == "abc"
    assert "s3cr3t" not in sent.values()


def test_secrets_that_stay_are_named_without_their_values() -> None:
    assert held_back(HERE) == [
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "HF_TOKEN",
        "MLFLOW_TRACKING_PASSWORD",
    ]


def test_further_variables_travel_when_asked_as_they_are_here_or_as_they_shall_be_there() -> None:
    asked = ["AWS_PROFILE", "AWS_SHARED_CREDENTIALS_FILE=/etc/aws", "AWS_WEB_IDENTITY_TOKEN_FILE=/var/token"]
    sent = job_environment(HERE, asked, "abc")
    assert sent["AWS_PROFILE"] == "mine"
    assert sent["AWS_SHARED_CREDENTIALS_FILE"] == "/etc/aws"
    assert sent["AWS_WEB_IDENTITY_TOKEN_FILE"] == "/var/token"


@pytest.mark.parametrize(
    "asked",
    [
        "AWS_SECRET_ACCESS_KEY",
        "HF_TOKEN=s3cr3t",
        "MY_API_KEY=s3cr3t",
        "DB_PASSWORD=s3cr3t",
        "AWS_SECRET_KEY=s3cr3t",
        "DB_PASS=s3cr3t",
    ],
)
def test_a_secret_is_refused_even_when_asked_and_not_repeated(asked: str) -> None:
    with pytest.raises(ValueError, match="is a secret") as refused:
        job_environment(HERE, [asked], "abc")
    assert "s3cr3t" not in str(refused.value)


@pytest.mark.parametrize(
    "uri",
    [
        "https://me:s3cr3t@mlflow",
        "postgresql://me:s3cr3t@db/mlflow",
        "https://h/x?sig=s3cr3t",
        "https://s3cr3t@mlflow",
        "https://h/x?access_token=s3cr3t",
        "postgresql://db/x?user=me&password=s3cr3t",
    ],
)
def test_an_address_with_a_password_is_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(ValueError, match="MLFLOW_TRACKING_URI has a password") as refused:
        job_environment({"MLFLOW_TRACKING_URI": uri}, [], "abc")
    assert "s3cr3t" not in str(refused.value)
    with pytest.raises(ValueError, match="after --pairs has a password") as refused:
        check_arguments(["photos", "--pairs", uri])
    assert "s3cr3t" not in str(refused.value)


def test_a_variable_that_is_not_set_is_refused() -> None:
    with pytest.raises(ValueError, match="--env NOWHERE is not set here"):
        job_environment({}, ["NOWHERE"], "abc")


def test_ordinary_addresses_pass() -> None:
    check_arguments(["photos", "--pairs", "s3://bucket/cc12m.tsv", "--download.fetch.allow-hosts", "127.0.0.1:80"])
    check_arguments(["x", "--store", "postgresql://me@db/mlflow", "--file", "git@host:x", "--url", "http://h/x?keys=1"])

"""The files of ``ray up`` are what Ray's launcher, EC2 and Compute Engine accept: checked offline."""

import copy
import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import boto3
import jsonschema
import pytest
import yaml
from botocore.model import Shape
from botocore.validate import ParamValidator
from moto import mock_aws
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.tags import TAG_RAY_NODE_KIND, TAG_RAY_NODE_NAME, TAG_RAY_USER_NODE_TYPE

from cluster.node_types import HEAD, NODE_TYPES, WORKERS, NodeType
from cluster.package import ROOT
from cluster.site import SITE
from cluster.write import render

Config = dict[str, Any]


@pytest.mark.parametrize("name", list(render(SITE)))
def test_every_cluster_file_is_what_the_node_types_say(name: str) -> None:
    assert (ROOT / name).read_text(encoding="utf-8") == render(SITE)[name], "run python -m cluster.write"


@pytest.fixture(scope="module")
def aws() -> Iterator[None]:
    from ray.autoscaler._private.aws import node_provider

    mock = mock_aws()
    mock.start(reset=False)  # the S3 server of other tests lives in this process and keeps its data in the same place
    with pytest.MonkeyPatch.context() as patch:
        known = node_provider.list_ec2_instances(SITE.aws_region, {})  # well over a thousand: asked for once
        patch.setattr(node_provider, "list_ec2_instances", lambda *_: known)
        yield
    mock.stop(remove_data=False)


@pytest.fixture
def aws_config(aws: None) -> Config:
    return read("cluster/aws.yaml")


@pytest.fixture
def gcp_config() -> Config:
    return read("cluster/gcp.yaml")


def read(name: str) -> Config:
    config: Config = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
    return config


def accepted_by_aws(config: Config) -> Config:
    """Do what ``ray up`` does before it asks for machines, and check the machines it would ask for."""
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    filled = AWSNodeProvider.fillout_available_node_types_resources(prepare_config(copy.deepcopy(config)))
    validate_config(filled)
    for kind in filled["available_node_types"].values():
        report = ParamValidator().validate({**kind["node_config"], "MinCount": 1, "MaxCount": 1}, run_instances())
        if report.has_errors():
            raise ValueError(report.generate_report())
    return filled


@cache
def run_instances() -> Shape:
    """Give what EC2 takes when it is asked for machines."""
    client = boto3.client("ec2", region_name=SITE.aws_region)
    return client.meta.service_model.operation_model("RunInstances").input_shape


def accepted_by_gcp(config: Config) -> Config:
    from ray.autoscaler._private.gcp.node_provider import GCPNodeProvider

    filled = GCPNodeProvider.fillout_available_node_types_resources(prepare_config(copy.deepcopy(config)))
    validate_config(filled)
    for kind in filled["available_node_types"].values():
        compute_engine().validate(kind["node_config"])
    return filled


@cache
def compute_engine() -> jsonschema.Draft202012Validator:
    """Make a strict check of an instance from what Google's client knows of Compute Engine."""
    documents = resources.files("googleapiclient") / "discovery_cache" / "documents"
    known = json.loads((documents / "compute.v1.json").read_text(encoding="utf-8"))["schemas"]
    definitions = {name: strict(schema) for name, schema in known.items()}
    return jsonschema.Draft202012Validator({"definitions": definitions, "$ref": "#/definitions/Instance"})


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """Turn a description of Google's into a schema that refuses what it does not name."""
    if "$ref" in schema:
        return {"$ref": f"#/definitions/{schema['$ref']}"}
    found: dict[str, Any] = {name: schema[name] for name in ("type", "enum") if name in schema}
    if schema.get("format") == "int64":
        found["type"] = ["string", "integer"]  # written as a string, and taken as either
    if "properties" in schema:
        found["properties"] = {name: strict(value) for name, value in schema["properties"].items()}
        found["additionalProperties"] = False
    for name in ("items", "additionalProperties"):
        if name in schema:
            found[name] = strict(schema[name])
    return found


def ray_resources(kind: NodeType) -> dict[str, int]:
    gpus = {"GPU": kind.gpus} if kind.gpus else {}
    return {"CPU": kind.cpus, **gpus, **kind.resources}


def test_ray_and_ec2_accept_the_aws_file_and_see_what_the_stages_ask_for(aws_config: Config) -> None:
    types = accepted_by_aws(aws_config)["available_node_types"]
    assert types.keys() == {kind.name for kind in NODE_TYPES}
    for kind in NODE_TYPES:
        seen = types[kind.name]["resources"]
        assert {name: seen[name] for name in ray_resources(kind)} == ray_resources(kind)
    assert types["label"]["resources"]["accelerator_type:L4"] == 1
    assert types["train"]["resources"]["accelerator_type:A100"] == 1


def test_rays_provider_starts_a_machine_of_every_kind(
    aws_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    monkeypatch.setenv("HOME", str(tmp_path))  # it writes a key there
    for profile in (SITE.aws_head_profile, SITE.aws_worker_profile):
        boto3.client("iam").create_instance_profile(InstanceProfileName=profile)
    config = bootstrap_aws(accepted_by_aws(aws_config))
    provider = AWSNodeProvider(config["provider"], "glipv2")
    for name, kind in config["available_node_types"].items():
        tags = {TAG_RAY_NODE_KIND: "head" if name == HEAD.name else "worker", TAG_RAY_USER_NODE_TYPE: name}
        provider.create_node(kind["node_config"], {**tags, TAG_RAY_NODE_NAME: name}, 1)
    found = boto3.client("ec2", region_name=SITE.aws_region).describe_instances()["Reservations"]
    started = {machine["InstanceType"]: machine for reservation in found for machine in reservation["Instances"]}
    assert started.keys() == {kind.aws for kind in NODE_TYPES}
    for kind in NODE_TYPES:
        assert started[kind.aws].get("InstanceLifecycle") == ("spot" if kind.spot else None)


def test_ray_and_compute_engine_accept_the_gcp_file(gcp_config: Config) -> None:
    types = accepted_by_gcp(gcp_config)["available_node_types"]
    assert {name: kind["resources"] for name, kind in types.items()} == {k.name: ray_resources(k) for k in NODE_TYPES}


def test_labelling_is_on_spot_machines_from_none_up_and_all_else_on_demand(
    aws_config: Config, gcp_config: Config
) -> None:
    aws_types, gcp_types = aws_config["available_node_types"], gcp_config["available_node_types"]
    assert {n for n, kind in aws_types.items() if "InstanceMarketOptions" in kind["node_config"]} == {"label"}
    spot = {
        n for n, k in gcp_types.items() if k["node_config"].get("scheduling", {}).get("provisioningModel") == "SPOT"
    }
    assert spot == {"label"}
    for types in (aws_types, gcp_types):
        assert types["label"]["min_workers"] == 0
        assert types["head"]["resources"] == {"CPU": 0}, "work on the head takes it down one day"


@pytest.mark.parametrize("kind", NODE_TYPES, ids=lambda kind: kind.name)
def test_machines_are_as_large_as_the_node_types_say(kind: NodeType, aws: None) -> None:
    client = boto3.client("ec2", region_name=SITE.aws_region)
    [machine] = client.describe_instance_types(InstanceTypes=[kind.aws])["InstanceTypes"]
    assert machine["VCpuInfo"]["DefaultVCpus"] == kind.processors
    assert sum(gpu["Count"] for gpu in machine.get("GpuInfo", {}).get("Gpus", [])) == kind.gpus
    assert kind.memory_gib < machine["MemoryInfo"]["SizeInMiB"] / 1024
    assert kind.cpus < kind.processors
    # Google's names end with the number of processors, or of GPUs if the machine has some of the larger kind.
    size = int(re.findall(r"-(\d+)g?$", kind.gcp)[0])
    assert size == (kind.gpus if kind.gcp.endswith("g") else kind.processors)


def put(*path: str | int, value: object) -> Callable[[Config], None]:
    """Make a change of a configuration."""

    def change(config: Config) -> None:
        *parents, last = path
        place: Any = config
        for name in parents:
            place = place[name]
        place[last] = value

    return change


TYPES = "available_node_types"
MISTAKES = {
    "unknown key": put("idle_timeout_minute", value=5),
    "unknown key of a node type": put(TYPES, "label", "min_worker", value=0),
    "unknown key of docker": put("docker", "images", value="x"),
    "wrong type": put("max_workers", value="44"),
    "number as resource name": put(TYPES, "label", "resources", value=["label"]),
    "bad label": put(TYPES, "label", "labels", value={"market": 1}),
    "no such head": put("head_node_type", value="heads"),
    "more machines wanted than allowed": put(TYPES, "download", "min_workers", value=1000),
    "a container without a name": put("docker", "container_name", value=""),
}
AWS_MISTAKES = {
    **MISTAKES,
    "unknown machine": put(TYPES, "label", "node_config", "InstanceType", value="g6.3xlarge"),
    "unknown key of a machine": put(
        TYPES, "label", "node_config", "InstanceMarketOption", value={"MarketType": "spot"}
    ),
    "wrong type of a machine": put(TYPES, "head", "node_config", "BlockDeviceMappings", value="200"),
}
GCP_MISTAKES = {
    **MISTAKES,
    "no machine": put(TYPES, "label", "node_config", value={"machineTypes": "g2-standard-8"}),
    "unknown key of a machine": put(TYPES, "label", "node_config", "schedulings", value={}),
    "wrong type of a machine": put(TYPES, "label", "node_config", "scheduling", value=[{"preemptible": True}]),
    "no such market": put(TYPES, "label", "node_config", "scheduling", "provisioningModel", value="CHEAP"),
}
REFUSALS = (ValueError, AssertionError, jsonschema.ValidationError)


@pytest.mark.parametrize("mistake", AWS_MISTAKES)
def test_a_mistake_in_the_aws_file_is_found(
    mistake: str, aws_config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    from ray.autoscaler._private.cli_logger import SilentClickException

    AWS_MISTAKES[mistake](aws_config)
    with pytest.raises((*REFUSALS, SilentClickException)):
        accepted_by_aws(aws_config)


@pytest.mark.parametrize("mistake", GCP_MISTAKES)
def test_a_mistake_in_the_gcp_file_is_found(mistake: str, gcp_config: Config) -> None:
    GCP_MISTAKES[mistake](gcp_config)
    with pytest.raises(REFUSALS):
        accepted_by_gcp(gcp_config)


def test_more_machines_at_least_than_at_most_are_refused_which_ray_accepts(aws_config: Config) -> None:
    aws_config["available_node_types"]["label"] |= {"min_workers": 9, "max_workers": 8}
    accepted_by_aws(aws_config)
    with pytest.raises(ValueError, match="label has min_workers 9 and max_workers 8; give 0 <= min <= max"):
        NodeType(
            name="label",
            aws="g6.2xlarge",
            gcp="g2-standard-8",
            processors=8,
            memory_gib=28,
            disk_gib=200,
            cpus=7,
            min_workers=9,
            max_workers=8,
        )


def test_every_machine_has_the_token_before_ray_starts(aws_config: Config, gcp_config: Config) -> None:
    for config in (aws_config, gcp_config):
        [secrets] = config["file_mounts"]
        assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
        assert f"--env RAY_AUTH_TOKEN_PATH={secrets}/auth_token" in config["docker"]["run_options"]


def test_workers_may_not_start_machines(aws_config: Config) -> None:
    profiles = {
        name: kind["node_config"]["IamInstanceProfile"]["Name"]
        for name, kind in aws_config["available_node_types"].items()
    }
    assert profiles.pop(HEAD.name) == SITE.aws_head_profile
    assert set(profiles.values()) == {SITE.aws_worker_profile}
    assert len(profiles) == len(WORKERS)

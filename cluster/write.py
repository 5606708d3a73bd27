"""Write the cluster files from `cluster.node_types` and `cluster.site`: ``python -m cluster.write``."""

import re
import textwrap
from typing import Any

import yaml

from cluster import launcher, manifests
from cluster.launcher import Part
from cluster.node_types import PYTHON
from cluster.package import EXCLUDED, ROOT
from cluster.site import SITE, Site
from pipeline.session import ENVIRONMENT
from pipeline.tracking import COMMIT

HEADER = "Written by `python -m cluster.write` from cluster/node_types.py and cluster/site.py: change those instead."
WIDTH = 110


def main() -> None:
    """Write every file, and name those that changed."""
    for name, text in render(SITE).items():
        path = ROOT / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(f"written  {name}")


def render(site: Site) -> dict[str, str]:
    """Give the text of every file by its path in the checkout."""
    return {
        "cluster/aws.yaml": _text("Up: ray up cluster/aws.yaml. Down: ray down cluster/aws.yaml.", launcher.aws(site)),
        "cluster/gcp.yaml": _text("Up: ray up cluster/gcp.yaml. Down: ray down cluster/gcp.yaml.", launcher.gcp(site)),
        "cluster/kuberay/raycluster.yaml": _text(
            "Up: kubectl apply -f cluster/kuberay/raycluster.yaml. Down: kubectl delete -f the same.",
            manifests.cluster(site),
        ),
        "cluster/kuberay/rayjob.yaml": _text(
            "Labels captions on a cluster of its own: kubectl apply -f cluster/kuberay/rayjob.yaml.",
            manifests.job(site),
        ),
        "cluster/runtime_env.yaml": _text(
            "For Ray's own ray job submit, from the root of the checkout: the code goes along, tests and data do not.",
            runtime_env(),
        ),
        "cluster/Containerfile": _containerfile(),
    }


def runtime_env() -> list[Part]:
    """Make the environment that a submitted job runs in. What git ignores stays behind in any case."""
    return [("", {"working_dir": ".", "excludes": [f"/{name}/" for name in EXCLUDED], "env_vars": ENVIRONMENT})]


def _text(purpose: str, parts: list[Part]) -> str:
    blocks = [_comment(HEADER) + _comment(purpose)]
    for comment, entries in parts:
        blocks.append((_comment(comment) if comment else "") + yaml.dump(entries, Dumper=_Plain, **_STYLE))
    return "\n".join(blocks)


def _comment(text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False) + "\n"


class _Plain(yaml.SafeDumper):
    """Writes what is there twice twice, instead of by reference; lists indented, and lines as lines."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _write_string(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Plain.add_representer(str, _write_string)
_STYLE: dict[str, Any] = {"sort_keys": False, "width": 1000}


def _containerfile() -> str:
    """Make the recipe of the image; the version of uv is that of the Makefile."""
    [uv] = re.findall(r"^UV_VERSION := (\S+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    return _comment(HEADER) + CONTAINERFILE.format(python=PYTHON, uv=uv, commit=COMMIT)


CONTAINERFILE = """\
# Build from the root of the checkout, with the commit that runs are to be named by:
#   docker build -f cluster/Containerfile --build-arg {commit}=$(git rev-parse HEAD) -t <image of cluster/site.py> .
# Started by hand it needs --shm-size=8g or more: Ray's object store lies in /dev/shm, of which a container has 64 MB.
FROM docker.io/library/python:{python}-slim-bookworm

# ssh and rsync are for Ray's cluster launcher, wget is for the health checks of KubeRay.
RUN apt-get update \\
    && apt-get install --yes --no-install-recommends ca-certificates openssh-client rsync wget \\
    && rm -rf /var/lib/apt/lists/* \\
    && useradd --uid 1000 --gid users --create-home --shell /bin/bash ray

# Compiled once here, instead of by every worker at its start. Into the system's Python, as login shells reset PATH.
ENV UV_COMPILE_BYTECODE=1 UV_SYSTEM_PYTHON=1 UV_NO_CACHE=1
RUN pip install --no-cache-dir uv=={uv}
COPY requirements.lock /build/
RUN uv pip install --require-hashes --requirements /build/requirements.lock

# A submitted job brings its own code, which goes before this one.
COPY pyproject.toml README.md LICENSE /build/
COPY glipv2 /build/glipv2
COPY pipeline /build/pipeline
COPY jobs /build/jobs
COPY cluster /build/cluster
RUN uv pip install --no-deps /build
ARG {commit}
ENV {commit}=${commit} RAY_USAGE_STATS_ENABLED=0 NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER ray
WORKDIR /home/ray
"""


if __name__ == "__main__":
    main()

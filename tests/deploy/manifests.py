"""What the files in `deploy/` say, read as a container engine and Kubernetes read them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

__all__ = [
    "COMPOSE",
    "DEPLOY",
    "KUBERNETES",
    "ROOT",
    "Container",
    "compose",
    "dockerfile",
    "kubernetes",
    "objects",
    "text",
]

ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "deploy"
COMPOSE = DEPLOY / "compose.yaml"
KUBERNETES = DEPLOY / "kubernetes"


class Container(NamedTuple):
    """One container: its command, its environment, and the files it finds, by path; a secret's file is None."""

    name: str
    command: list[str]
    environment: dict[str, str]
    files: dict[str, Path | None]
    address: str  # where the others reach it, without a port
    probes: list[str]  # paths
    grace: float  # seconds from SIGTERM to SIGKILL


def text(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def objects() -> list[dict[str, Any]]:
    """All objects that stand in the files that the kustomization names."""
    files = text(KUBERNETES / "kustomization.yaml")["resources"]
    return [each for file in files for each in yaml.safe_load_all((KUBERNETES / file).read_text(encoding="utf-8"))]


def dockerfile() -> Iterator[tuple[str, str]]:
    """The instructions of the Dockerfile, in order, and what follows them."""
    joined = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE))
    for line in filter(str.strip, joined.splitlines()):
        name, _, rest = line.strip().partition(" ")
        yield name, rest.strip()


def entrypoint() -> list[str]:
    return [str(word) for word in json.loads(dict(dockerfile())["ENTRYPOINT"])]


def compose() -> list[Container]:
    """The services of compose.yaml."""
    whole = text(COMPOSE)
    found = []
    for name, service in whole["services"].items():
        files: dict[str, Path | None] = {f"/run/secrets/{secret}": None for secret in service["secrets"]}
        for each in service["configs"]:
            files[each["target"]] = DEPLOY / whole["configs"][each["source"]]["file"]
        found.append(
            Container(
                name=name,
                command=[*entrypoint(), *service["command"]],
                environment=service.get("environment", {}),
                files=files,
                address=name,
                probes=["/livez"],  # the image's own
                grace=float(service["stop_grace_period"].removesuffix("s")),
            )
        )
    return found


def kubernetes() -> list[Container]:
    """The pods of the stateful set."""
    [whole] = [each for each in objects() if each["kind"] == "StatefulSet"]
    template = whole["spec"]["template"]["spec"]
    [container] = template["containers"]
    mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    generated = text(KUBERNETES / "kustomization.yaml")
    files: dict[str, Path | None] = {}
    for volume in template["volumes"]:
        at = mounts[volume["name"]]
        if "configMap" in volume:
            [made] = [each for each in generated["configMapGenerator"] if each["name"] == volume["configMap"]["name"]]
            files |= {f"{at}/{file}": KUBERNETES / file for file in made["files"]}
        if "secret" in volume:
            [made] = [each for each in generated["secretGenerator"] if each["name"] == volume["secret"]["secretName"]]
            files |= {f"{at}/{key.partition('=')[0]}": None for key in made["files"]}
    found = []
    for number in range(whole["spec"]["replicas"]):
        name = f"{whole['metadata']['name']}-{number}"
        fields = {"metadata.name": name}
        environment = {each["name"]: fields[each["valueFrom"]["fieldRef"]["fieldPath"]] for each in container["env"]}
        found.append(
            Container(
                name=name,
                command=[*entrypoint(), *(_expanded(word, environment) for word in container["args"])],
                environment=environment,
                files=files,
                address=f"{name}.{whole['spec']['serviceName']}",
                probes=[container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")],
                grace=float(template["terminationGracePeriodSeconds"]),
            )
        )
    return found


def _expanded(word: str, environment: dict[str, str]) -> str:
    """`$(NAME)` as Kubernetes puts it in; one that it does not know stays, and is found by the tests."""
    return re.sub(r"\$\((\w+)\)", lambda found: environment.get(found[1], found[0]), word)

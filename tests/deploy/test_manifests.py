"""The image, the compose file and the manifests: valid by their schemas, closed where they can be, and of one mind."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from deploy.manifests import (
    COMPOSE,
    DEPLOY,
    KUBERNETES,
    ROOT,
    Container,
    compose,
    dockerfile,
    kubernetes,
    objects,
    text,
)
from deploy.processes import CLUSTER, HTTP

from microkernel.config import read_config, settings_of
from services.cluster.certificates.names import check_node
from services.cluster.settings import ClusterSettings
from services.gateway.settings import GatewaySettings
from services.inference.settings import InferenceSettings
from services.memory.service import MemorySettings

BIN = Path(sys.executable).parent
OLDEST = "1.30"  # of Kubernetes: what docs/how-to/deploy.md names
STOP = 5.0  # seconds that the kernel gives to each service
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
INSTRUCTIONS = list(dockerfile())
FINAL = INSTRUCTIONS[max(place for place, (name, _) in enumerate(INSTRUCTIONS) if name == "FROM") :]
CONTAINERS = [*compose(), *kubernetes()]


def kind(name: str) -> dict[str, Any]:
    [found] = [each for each in objects() if each["kind"] == name]
    return found


def pod() -> dict[str, Any]:
    spec: dict[str, Any] = kind("StatefulSet")["spec"]["template"]["spec"]
    return spec


def program(name: str) -> str:
    found = shutil.which(name, path=str(BIN)) or shutil.which(name)
    assert found is not None, f"{name} is not installed: pip install -e '.[test]'"
    return found


# By the rules of others


def test_the_linter_of_dockerfiles_finds_nothing() -> None:
    done = subprocess.run([program("hadolint"), DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("", 0)


def test_the_compose_file_is_one_by_the_specification() -> None:
    command = [program("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", COMPOSE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("version", [OLDEST, kubernetes_validate.latest_version()])
@pytest.mark.parametrize("thing", objects(), ids=lambda thing: f"{thing['kind']} {thing['metadata']['name']}")
def test_an_object_is_one_by_the_schema_of_kubernetes(thing: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(thing, version, strict=True)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_the_kustomization_builds_and_the_pods_find_what_it_generates(tmp_path: Path) -> None:
    shutil.copytree(KUBERNETES, tmp_path / "k", ignore=shutil.ignore_patterns("secrets"))
    (tmp_path / "k" / "secrets").mkdir()
    (tmp_path / "k" / "secrets" / "join").write_text("x")
    built = subprocess.run(["kubectl", "kustomize", tmp_path / "k"], capture_output=True, text=True, check=True).stdout
    made = list(yaml.safe_load_all(built))
    for each in made:
        kubernetes_validate.validate(each, OLDEST, strict=True)
    names = {each["kind"]: each["metadata"]["name"] for each in made}
    [volumes] = [each["spec"]["template"]["spec"]["volumes"] for each in made if each["kind"] == "StatefulSet"]
    used = {"ConfigMap": volumes[1]["configMap"]["name"], "Secret": volumes[2]["secret"]["secretName"]}
    assert used == {"ConfigMap": names["ConfigMap"], "Secret": names["Secret"]}
    assert names["Secret"] != "microkernel-join", "a changed secret is to be a new name, so that the pods are renewed"


# The image


def test_what_runs_is_not_root_and_the_pods_run_as_the_same_user() -> None:
    user = dict(FINAL)["USER"]
    context = pod()["securityContext"]
    assert user == f"{context['runAsUser']}:{context['runAsGroup']}"
    assert context["runAsUser"] >= 10_000
    assert context["runAsNonRoot"]


def test_no_stage_is_told_a_secret() -> None:
    told = [rest for name, rest in INSTRUCTIONS if name in {"ARG", "ENV"}]
    assert told
    assert not [each for each in told if re.search("token|secret|password|key", each, re.IGNORECASE)]


def test_the_image_has_the_version_of_the_project_and_everybody_names_that() -> None:
    version = PROJECT["version"]
    labels = " ".join(rest for name, rest in FINAL if name == "LABEL")
    assert f'image.version="{version}"' in labels
    assert {each["image"] for each in text(COMPOSE)["services"].values()} == {f"microkernel:{version}"}
    assert [each["newTag"] for each in text(KUBERNETES / "kustomization.yaml")["images"]] == [version]


def test_the_image_has_a_python_that_the_project_is_for() -> None:
    assert INSTRUCTIONS[0][0] == "ARG"
    python = INSTRUCTIONS[0][1].removeprefix("PYTHON=")
    assert f"Programming Language :: Python :: {python}" in PROJECT["classifiers"]
    assert {rest.split()[0] for name, rest in INSTRUCTIONS if name == "FROM"} == {"python:${PYTHON}-slim-bookworm"}


def test_all_that_is_copied_is_there_and_let_through() -> None:
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    let = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = {
        source for name, rest in INSTRUCTIONS if name == "COPY" and "--from" not in rest for source in rest.split()[:-1]
    }
    assert rules[1] == "*"
    assert copied == let
    assert [each for each in copied if not (ROOT / each).exists()] == []
    assert any(fnmatch("services/inference/native/_kernels_avx2.so", rule) for rule in rules)


def test_every_package_of_the_project_is_in_the_image() -> None:
    packages = {each.rstrip("*") for each in PYPROJECT["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert packages <= {rest.split()[0] for name, rest in INSTRUCTIONS if name == "COPY"}


def test_the_ports_are_those_that_the_nodes_listen_on() -> None:
    assert dict(FINAL)["EXPOSE"].split() == [str(HTTP), str(CLUSTER)]
    assert GatewaySettings().port == HTTP
    [container] = pod()["containers"]
    assert {each["name"]: each["containerPort"] for each in container["ports"]} == {"http": HTTP, "cluster": CLUSTER}


def test_the_image_stops_as_a_node_does() -> None:
    assert dict(FINAL)["STOPSIGNAL"] == "SIGTERM"


def test_the_state_is_in_a_volume_everywhere_and_tmp_can_be_written() -> None:
    environment = dict(each.split("=", 1) for name, rest in FINAL if name == "ENV" for each in shlex.split(rest))
    volume = str(Path(environment["MICROKERNEL_ROOT"]).parent)
    assert volume in dict(FINAL)["VOLUME"]
    [container] = pod()["containers"]
    assert {volume, environment["HOME"]} <= {each["mountPath"] for each in container["volumeMounts"]}
    assert [each["metadata"]["name"] for each in kind("StatefulSet")["spec"]["volumeClaimTemplates"]] == ["state"]
    for name, each in text(COMPOSE)["services"].items():
        assert each["volumes"] == [f"{name}:{volume}"]
        assert environment["HOME"] in each["tmpfs"]


# What the nodes are told


@pytest.mark.parametrize("container", CONTAINERS, ids=lambda each: each.name)
def test_the_settings_are_taken_and_lead_to_the_first_node_and_to_the_secret(container: Container) -> None:
    config = container.command[container.command.index("--config") + 1]
    assert container.files[config] is not None
    read = read_config(container.files[config])
    own = settings_of(read, "cluster", ClusterSettings)
    first = (compose() if container in compose() else kubernetes())[0]
    assert own.join == (f"https://{first.address}:{CLUSTER}",)
    assert own.join_secret in container.files
    assert container.files[own.join_secret] is None
    assert own.port == CLUSTER
    assert settings_of(read, "gateway", GatewaySettings).host == "0.0.0.0"
    assert f"{container.address}:{CLUSTER}" in container.command
    assert check_node(container.command[container.command.index("--node") + 1]) == container.name


@pytest.mark.parametrize("container", CONTAINERS, ids=lambda each: each.name)
def test_a_node_has_time_to_leave(container: Container) -> None:
    own = settings_of(read_config(container.files["/etc/microkernel/node.toml"]), "cluster", ClusterSettings)
    services = len(PROJECT["entry-points"]["microkernel.services"])
    assert container.grace >= own.drain_seconds + services * STOP + STOP  # the last ones: `preStop`


# Who comes in


def test_compose_opens_one_gateway_to_this_machine_and_nothing_else() -> None:
    ports = [port for each in text(COMPOSE)["services"].values() for port in each.get("ports", [])]
    assert ports == [f"127.0.0.1:{HTTP}:{HTTP}"]


@pytest.mark.parametrize("name", list(text(COMPOSE)["services"]))
def test_a_container_of_compose_may_do_nothing_that_it_does_not_need(name: str) -> None:
    service = text(COMPOSE)["services"][name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


def test_a_pod_may_do_nothing_that_it_does_not_need() -> None:
    [container] = pod()["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod()["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod()["automountServiceAccountToken"] is False


def test_the_door_between_nodes_is_open_to_nodes_alone() -> None:
    policy = kind("NetworkPolicy")["spec"]
    [doors] = [each for each in policy["ingress"] if {"port": "cluster", "protocol": "TCP"} in each["ports"]]
    assert policy["policyTypes"] == ["Ingress"]
    assert [each["podSelector"] for each in doors["from"]] == [kind("StatefulSet")["spec"]["selector"]]


def test_what_selects_pods_selects_these() -> None:
    labels = kind("StatefulSet")["spec"]["template"]["metadata"]["labels"]
    pods = {**labels, "statefulset.kubernetes.io/pod-name": "microkernel-0"}
    selectors = [each["spec"]["selector"] for each in objects() if each["kind"] == "Service"]
    selectors += [kind("PodDisruptionBudget")["spec"]["selector"]["matchLabels"]]
    selectors += [kind("NetworkPolicy")["spec"]["podSelector"]["matchLabels"]]
    assert len(selectors) == 4
    assert all(each.items() <= pods.items() for each in selectors)


def test_nodes_find_each_other_by_name_before_they_are_ready() -> None:
    [headless] = [each for each in objects() if each["kind"] == "Service" and each["spec"].get("clusterIP") == "None"]
    assert headless["metadata"]["name"] == kind("StatefulSet")["spec"]["serviceName"]
    assert headless["spec"]["publishNotReadyAddresses"]


def test_no_namespace_is_named() -> None:
    assert [each for each in objects() if "namespace" in each["metadata"]] == []


def test_secrets_are_kept_out_of_the_repository() -> None:
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {"deploy/secrets/", "deploy/kubernetes/secrets/"} <= set(ignored)
    assert text(COMPOSE)["secrets"]["join"]["file"] == "./secrets/join"
    assert text(KUBERNETES / "kustomization.yaml")["secretGenerator"][0]["files"] == ["join=secrets/join"]


def test_the_containers_of_one_machine_share_its_memory() -> None:
    config = read_config(DEPLOY / "node.toml")
    count = len(compose())
    assert settings_of(config, "memory", MemorySettings).share * count <= MemorySettings().share
    assert settings_of(config, "inference", InferenceSettings).cache_share * count <= InferenceSettings().cache_share

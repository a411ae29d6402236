"""The files that bring a cluster up say what Ray, KubeRay and the application understand."""

from __future__ import annotations

import json
import re
import shlex
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import ray
import yaml

with warnings.catch_warnings(action="ignore"):  # Ray's own models use what pydantic deprecates
    from ray.serve.schema import ServeDeploySchema

    from deployments.settings import parse_application

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
LOOPBACK = {"127.0.0.1", "::1", "localhost"}

SERVICE, CLAIM, POLICY = yaml.safe_load_all((CLUSTER / "rayservice.yaml").read_text())
SPEC = SERVICE["spec"]
HEAD = SPEC["rayClusterConfig"]["headGroupSpec"]
(WORKERS,) = SPEC["rayClusterConfig"]["workerGroupSpecs"]
LAUNCHER = yaml.safe_load((CLUSTER / "ray-cluster.yaml").read_text())
DOCUMENT = (ROOT / "docs/cluster.md").read_text()
(DOCUMENTED,) = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL)]

APPLICATIONS = {
    "rayservice": yaml.safe_load(SPEC["serveConfigV2"]),
    "flux2": yaml.safe_load((ROOT / "configs/flux2.yaml").read_text()),
    "document": DOCUMENTED,
}


def container(group: dict[str, Any]) -> dict[str, Any]:
    (only,) = group["template"]["spec"]["containers"]
    return dict(only)


@pytest.mark.parametrize("config", APPLICATIONS.values(), ids=APPLICATIONS)
def test_serve_and_the_application_take_the_config(config: dict[str, Any]) -> None:
    (application,) = ServeDeploySchema.model_validate(config).applications
    module, _, builder = application.import_path.partition(":")
    assert callable(getattr(import_module(module), builder))
    parse_application(application.args)


def test_only_a_pod_listens_beyond_loopback() -> None:
    assert APPLICATIONS["flux2"]["http_options"]["host"] in LOOPBACK
    assert APPLICATIONS["rayservice"]["http_options"]["host"] == "0.0.0.0"
    (gateway,) = [rule for rule in POLICY["spec"]["ingress"] if "ports" in rule]
    assert gateway["ports"] == [{"port": "serve"}]
    assert "serveService" not in SPEC


def test_a_pod_on_a_gpu_node_needs_a_gpu() -> None:
    assert APPLICATIONS["rayservice"]["applications"][0]["args"]["device"] == "cuda"
    resources = container(WORKERS)["resources"]
    assert resources["limits"]["nvidia.com/gpu"] == resources["requests"]["nvidia.com/gpu"] == "1"
    assert HEAD["rayStartParams"]["num-cpus"] == "0"


def test_rayservice_has_what_kuberay_reads() -> None:
    assert (SERVICE["apiVersion"], SERVICE["kind"]) == ("ray.io/v1", "RayService")
    assert SPEC["upgradeStrategy"] == {"type": "None"}
    assert SPEC["rayClusterConfig"]["authOptions"] == {"mode": "token"}
    assert SPEC["rayClusterConfig"]["rayVersion"] == ray.__version__
    assert WORKERS["minReplicas"] <= WORKERS["replicas"] <= WORKERS["maxReplicas"]
    assert all(isinstance(value, str) for group in (HEAD, WORKERS) for value in group["rayStartParams"].values())


@pytest.mark.parametrize("group", [HEAD, WORKERS], ids=["head", "workers"])
def test_every_mount_has_its_volume(group: dict[str, Any]) -> None:
    volumes = {volume["name"]: volume for volume in group["template"]["spec"]["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in container(group)["volumeMounts"]}
    assert set(volumes) == set(mounts.values())
    assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
    assert volumes[mounts[environment()["HF_HOME"]]]["persistentVolumeClaim"]["claimName"] == CLAIM["metadata"]["name"]


def test_a_worker_is_ready_by_health_and_never_restarted_for_it() -> None:
    worker = container(WORKERS)
    assert worker["readinessProbe"]["httpGet"] == {"path": "/health", "port": "serve"}
    assert worker["livenessProbe"]["httpGet"]["path"].startswith("/api/local_raylet")
    ports = {port["name"]: port["containerPort"] for port in worker["ports"]}
    assert ports["serve"] == APPLICATIONS["rayservice"]["http_options"]["port"]
    assert "readinessProbe" not in container(HEAD)


def test_a_worker_may_finish_its_requests() -> None:
    timeout = APPLICATIONS["rayservice"]["applications"][0]["args"]["request_timeout_seconds"]
    assert WORKERS["template"]["spec"]["terminationGracePeriodSeconds"] > timeout


def test_the_launcher_file_is_what_ray_takes() -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text())
    jsonschema.validate(LAUNCHER, schema)


def test_every_node_of_the_launcher_has_the_token() -> None:
    assert LAUNCHER["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        (start,) = [command for command in LAUNCHER[key] if "ray start" in command]
        assert "RAY_AUTH_MODE=token" in start
    assert "--dashboard-host=127.0.0.1" in LAUNCHER["head_start_ray_commands"][-1]


def instructions() -> list[list[str]]:
    text = (CLUSTER / "Dockerfile").read_text().replace("\\\n", " ")
    return [shlex.split(line) for line in text.splitlines() if line and not line.startswith("#")]


def environment() -> dict[str, str]:
    (variables,) = [words[1:] for words in instructions() if words[0] == "ENV"]
    return dict(word.split("=", 1) for word in variables)


def test_what_the_image_copies_exists_and_is_sent() -> None:
    sent = {line[1:] for line in (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines() if line[0] == "!"}
    copied = {source for words in instructions() if words[0] == "COPY" for source in words[1:-1]}
    assert copied == sent
    assert "constraints.txt" in copied
    missing = {name for name in copied if not (ROOT / name).exists()}
    assert not missing


def test_the_image_serves_as_an_ordinary_user() -> None:
    words = instructions()
    names = [line[0] for line in words]
    assert words[names.index("USER")][1] == "ray"
    assert names.index("USER") > max(index for index, name in enumerate(names) if name == "RUN")
    assert "http://127.0.0.1:8000/health]" in words[names.index("HEALTHCHECK")]
    assert (ROOT / json.loads((CLUSTER / "Dockerfile").read_text().rpartition("CMD ")[2])[-1]).exists()


def test_image_and_release_have_one_version() -> None:
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert container(HEAD)["image"] == container(WORKERS)["image"] == f"lightx2v-serve:{version[1]}"


@pytest.mark.parametrize("path", re.findall(r"\]\(\.\./([^)]+)\)", DOCUMENT))
def test_what_the_document_points_to_exists(path: str) -> None:
    assert (ROOT / path).exists()

"""The manifests: valid by the published schemas, hardened, and true to the settings."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]  # it ships none
import pytest
import yaml

from service.settings import Settings

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("base", "overlays/gpu", "overlays/site")
OLDEST = "1.30"
"""The oldest Kubernetes that this is checked against."""
NEWEST = kubernetes_validate.latest_version()
KUSTOMIZATION = "kustomization.yaml"
PREFIX = "SANITIZER_"

Document = dict[str, Any]


def documents(path: Path) -> list[Document]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def files() -> list[Path]:
    return sorted(FOLDER.rglob("*.yaml"))


def manifests() -> Iterator[tuple[Path, Document]]:
    """Whole objects: without kustomizations and what they lay over others."""
    laid_over = {
        path.parent / patch["path"]
        for path in FOLDER.rglob(KUSTOMIZATION)
        for patch in documents(path)[0].get("patches", [])
    }
    for path in files():
        if path.name != KUSTOMIZATION and path not in laid_over:
            for document in documents(path):
                yield path, document


def pods(given: list[Document]) -> list[tuple[str, Document]]:
    """Names and pod specifications of what makes pods."""
    return [
        (f"{document['kind']} {document['metadata']['name']}", document["spec"]["template"]["spec"])
        for document in given
        if document["kind"] in ("Deployment", "Job")
    ]


def own() -> list[Document]:
    return [document for _, document in manifests() if document["kind"] != "ScaledObject"]


def settings_in(path: Path) -> dict[str, str]:
    return dict(
        line.split("=", 1) for line in path.read_text().splitlines() if not line.startswith("#")
    )


def test_every_manifest_is_valid_and_has_no_unknown_field() -> None:
    for document in own():
        kubernetes_validate.validate(document, OLDEST, strict=True)


def test_every_file_is_named_by_the_kustomization_beside_it() -> None:
    for path in FOLDER.rglob(KUSTOMIZATION):
        (document,) = documents(path)
        named = {
            *document.get("resources", []),
            *(patch["path"] for patch in document.get("patches", [])),
            *(
                env
                for generator in document.get("configMapGenerator", [])
                for env in generator["envs"]
            ),
        }
        there = {
            other.name
            for other in path.parent.iterdir()
            if other.name != KUSTOMIZATION and (other.is_file() or other.name in named)
        }
        inside = {name for name in named if not name.startswith("..")}
        assert inside == there, path
        for name in named:
            assert (path.parent / name).exists(), f"{path} names {name}"


@pytest.mark.parametrize(("name", "pod"), pods(own()), ids=lambda value: str(value)[:30])
def test_pod_may_do_nothing_that_it_need_not(name: str, pod: Document) -> None:
    assert pod["automountServiceAccountToken"] is False, name
    assert pod["serviceAccountName"] in ("service", "worker")
    assert {"runAsNonRoot": True, "runAsUser": 10001, "runAsGroup": 10001}.items() <= pod[
        "securityContext"
    ].items()
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert all(set(volume) == {"name", "emptyDir"} for volume in pod["volumes"])
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"]
        assert {mount["mountPath"] for mount in container["volumeMounts"]} >= {"/tmp"}


def test_every_setting_that_is_named_is_one() -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    named = {name for path in FOLDER.rglob("*.env") for name in settings_in(path)}
    for path in files():
        for document in documents(path):
            if document["kind"] in ("Deployment", "Job"):
                for container in document["spec"]["template"]["spec"]["containers"]:
                    named |= {entry["name"] for entry in container["env"]}
    named.discard("CUDA_VISIBLE_DEVICES")
    assert named <= known
    assert {"SANITIZER_DATABASE_URL", "SANITIZER_BROKER_URL", "SANITIZER_STORAGE_URL"} <= named


def test_settings_of_the_files_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (FOLDER / "base/settings.env", FOLDER / "overlays/site/settings.env"):
        for name, value in settings_in(path).items():
            monkeypatch.setenv(name, value)
    settings = Settings(_env_file=None)
    assert (settings.worker_metrics_host, settings.worker_metrics_port) == ("0.0.0.0", 9100)
    assert settings.storage_url.startswith("s3://")


def test_the_api_estimates_with_the_threads_of_the_workers() -> None:
    # Of all pods: none has others of its own.
    shared = settings_in(FOLDER / "base/settings.env")
    assert {"SANITIZER_SLOTS", "SANITIZER_THREADS_PER_JOB"} <= shared.keys()
    for name, pod in pods(own()):
        for container in pod["containers"]:
            assert not {entry["name"] for entry in container["env"]} & shared.keys(), name


def test_secrets_come_from_the_secret_alone() -> None:
    secret = {
        PREFIX + name.upper()
        for name, field in Settings.model_fields.items()
        if "SecretStr" in str(field.annotation)
    } | {"SANITIZER_S3_ACCESS_KEY_ID"}
    for name, pod in pods(own()):
        for container in pod["containers"]:
            entries = {entry["name"]: entry for entry in container["env"]}
            assert secret <= entries.keys(), name
            for key in secret:
                reference = entries[key]["valueFrom"]["secretKeyRef"]
                assert (reference["name"], reference["key"]) == ("sanitizer", key)
    for path in FOLDER.rglob("*.env"):
        assert not secret & settings_in(path).keys()


def test_nothing_goes_out_but_to_database_broker_store_and_names() -> None:
    policies = [d for d in own() if d["kind"] == "NetworkPolicy"]
    by_name = {policy["metadata"]["name"]: policy["spec"] for policy in policies}
    assert by_name["default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    going_out = {name for name, spec in by_name.items() if "egress" in spec}
    assert going_out == {"backends"}
    ports = [
        (sorted({port["port"] for port in rule["ports"]}), "ipBlock" in rule["to"][0])
        for rule in by_name["backends"]["egress"]
    ]
    assert ports == [([5432], True), ([6379], True), ([443], True), ([53], False)]
    assert all(rule["to"] for rule in by_name["backends"]["egress"])


def test_workers_are_reached_by_prometheus_alone() -> None:
    reached = {
        document["metadata"]["name"]: document["spec"]["ingress"]
        for document in own()
        if document["kind"] == "NetworkPolicy" and "ingress" in document["spec"]
    }
    assert reached.keys() == {"service", "worker-metrics"}
    (rule,) = reached["worker-metrics"]
    assert rule["from"]
    assert [port["port"] for port in rule["ports"]] == [9100]


def test_scaled_object_has_what_keda_asks_for() -> None:
    """KEDA's schema is in no package; the names are those of its `keda.sh/v1alpha1`."""
    (scaled,) = documents(FOLDER / "keda" / "scaledobject.yaml")
    assert (scaled["apiVersion"], scaled["kind"]) == ("keda.sh/v1alpha1", "ScaledObject")
    spec = scaled["spec"]
    assert spec.keys() <= {
        *("scaleTargetRef", "pollingInterval", "cooldownPeriod", "initialCooldownPeriod"),
        *("idleReplicaCount", "minReplicaCount", "maxReplicaCount", "fallback", "advanced"),
        "triggers",
    }
    deployments = {d["metadata"]["name"] for d in own() if d["kind"] == "Deployment"}
    assert spec["scaleTargetRef"]["name"] in deployments
    assert 0 <= spec["minReplicaCount"] < spec["maxReplicaCount"]
    (trigger,) = spec["triggers"]
    assert trigger["type"] == "prometheus"
    assert trigger["metricType"] in ("AverageValue", "Value")
    assert trigger["metadata"].keys() >= {"serverAddress", "query", "threshold"}
    assert all(isinstance(value, str) for value in trigger["metadata"].values())


@pytest.fixture(scope="session")
def kustomize() -> list[str]:
    """The command that renders a folder."""
    if found := shutil.which("kustomize"):
        return [found, "build"]
    if found := shutil.which("kubectl"):
        return [found, "kustomize"]
    pytest.skip("neither kustomize nor kubectl is on PATH: Debian's kubernetes-client has it")


def render(kustomize: list[str], overlay: str) -> list[Document]:
    ran = subprocess.run(
        [*kustomize, str(FOLDER / overlay)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return [document for document in yaml.safe_load_all(ran.stdout) if document]


@pytest.mark.parametrize("overlay", OVERLAYS[1:])  # they hold the base
def test_overlay_renders_to_valid_objects_of_one_namespace(
    kustomize: list[str], overlay: str
) -> None:
    rendered = render(kustomize, overlay)
    for document in rendered:
        kubernetes_validate.validate(document, NEWEST, strict=True)
        if document["kind"] != "Namespace":
            assert document["metadata"]["namespace"] == "backdoor-sanitizer"
    assert {name for name, _ in pods(rendered)} >= {
        *("Deployment service", "Deployment worker", "Deployment reconcile", "Job migrate")
    }


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_two_deployments_want_the_same_pods(kustomize: list[str], overlay: str) -> None:
    deployments = [d["spec"] for d in render(kustomize, overlay) if d["kind"] == "Deployment"]
    selectors = [d["selector"]["matchLabels"] for d in deployments]
    for one, deployment in enumerate(deployments):
        labels = deployment["template"]["metadata"]["labels"].items()
        wanted_by = [n for n, selector in enumerate(selectors) if selector.items() <= labels]
        assert wanted_by == [one]


def test_gpu_overlay_has_a_worker_with_one_device_beside_the_other(kustomize: list[str]) -> None:
    rendered = dict(pods(render(kustomize, "overlays/gpu")))
    (container,) = rendered["Deployment worker-gpu"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    values = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert (values["SANITIZER_DEVICE"], values["CUDA_VISIBLE_DEVICES"]) == ("cuda", "0")
    (other,) = rendered["Deployment worker"]["containers"]
    assert "nvidia.com/gpu" not in other["resources"]["limits"]
    assert "SANITIZER_ONLY_ASKED_FOR" not in values
    others = {entry["name"]: entry.get("value") for entry in other["env"]}
    assert others["SANITIZER_ONLY_ASKED_FOR"] == "true"


def test_site_overlay_says_where_images_and_backends_are(kustomize: list[str]) -> None:
    rendered = render(kustomize, "overlays/site")
    images = {c["image"] for _, pod in pods(rendered) for c in pod["containers"]}
    assert all(image.startswith("images.example.com/") for image in images)
    assert "192.0.2." not in yaml.safe_dump(rendered)

"""Is what deploy/ gives to Kubernetes valid there: the chart as Helm renders it, and the manifest to read and change?

By the real Helm (its Go library, or the `helm` command where there is one) and the schemas of Kubernetes' own API, strictly: an
unknown field is an error. No cluster is asked. What the rendered objects say is read as a kubelet would.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml", reason="PyYAML comes with kubernetes-validate")

DEPLOY = Path(__file__).parents[2] / "deploy"
CHART = DEPLOY / "helm" / "pegashm"
HELM = shutil.which("helm")
needs_helm = pytest.mark.skipif(
    HELM is None and importlib.util.find_spec("helm_python") is None,
    reason="neither `helm` nor the package helm-python-sdk is here: pip install '.[deploy]'",
)
needs_schemas = pytest.mark.skipif(
    importlib.util.find_spec("kubernetes_validate") is None,
    reason="the package kubernetes-validate is not here: pip install '.[deploy]'",
)
SERVICE_MONITOR = "monitoring.coreos.com/v1"  # a custom resource: no schema of Kubernetes' own
OLDEST = "1.25"

EVERYTHING: dict[str, Any] = {
    "image": {"repository": "images/pegashm", "tag": "1", "pullSecrets": [{"name": "pull"}]},
    "arena": {"name": "kv0", "size": "256G", "hugepages": "2Mi", "group": "1000", "numa": "0,1"},
    "spill": {
        "enabled": True,
        "hostPaths": ["/ssd0", "/ssd1"],
        "size": "1.5T",
        "dailyWrites": "3T",
    },
    "peers": {"enabled": True, "keysSecret": "keys", "port": 7000, "ipFamily": "IPv6"},
    "rdma": {"enabled": True, "resourceName": "rdma/hca_shared_devices_a", "resourceCount": 2},
    "exporter": {"serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}}},
    "resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "8"}, "extraMemory": "8Gi"},
    "extraEnv": {"PEGASHM_REQUIRE_LOCK": "1"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {"nodeAffinity": {}},
    "priorityClassName": "system-node-critical",
    "podAnnotations": {"a": "b"},
    "podLabels": {"team": "llm"},
    "updateStrategy": {"type": "OnDelete"},
}
CASES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "everything": EVERYTHING,
    "spill": {"spill": {"enabled": True}},
    "peers by tcp": {"peers": {"enabled": True}},
    "rdma by the node's devices": {"peers": {"enabled": True}, "rdma": {"enabled": True}},
    "no exporter": {"exporter": {"enabled": False}},
    "huge pages of 1 GiB": {"arena": {"hugepages": "1Gi", "size": "1T"}},
    "not root": {"runAsUser": 10001, "runAsGroup": 10001, "arena": {"group": "10001"}},
}


class HelmRefusedError(Exception):
    """What Helm says to values or templates that cannot be."""


def rendered(values: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """The chart's objects, as `helm install kv` would send them."""
    if HELM is not None:
        (folder / "values.json").write_text(json.dumps(values))
        command = [HELM, "template", "kv", str(CHART), "--namespace", "llm"]
        command += ["--values", str(folder / "values.json"), "--kube-version", "1.31.0"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise HelmRefusedError(done.stderr)
        texts = [done.stdout]
    else:
        import helm_python

        try:
            with helm_python.Chart.load(CHART) as chart:
                chart.validate_schema(values)
                files = chart.render(values, name="kv", namespace="llm")
        except helm_python.HelmError as error:
            raise HelmRefusedError(str(error)) from error
        texts = [text for path, text in files.items() if path.endswith(".yaml")]
    return [thing for text in texts for thing in yaml.safe_load_all(text) if thing]


@pytest.fixture
def render(tmp_path: Path) -> Callable[[dict[str, Any]], list[dict[str, Any]]]:
    return lambda values: rendered(values, tmp_path)


def of_kind(objects: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [thing for thing in objects if thing["kind"] == kind]


def pod_of(objects: list[dict[str, Any]]) -> dict[str, Any]:
    (daemon_set,) = of_kind(objects, "DaemonSet")
    spec: dict[str, Any] = daemon_set["spec"]["template"]["spec"]
    return spec


def environment(container: dict[str, Any]) -> dict[str, str]:
    return {entry["name"]: entry.get("value", "") for entry in container["env"]}


def check_schemas(objects: list[dict[str, Any]]) -> None:
    import kubernetes_validate

    newest = ".".join(kubernetes_validate.latest_version().split(".")[:2])
    for thing in objects:
        if thing["apiVersion"] == SERVICE_MONITOR:
            continue
        for version in (OLDEST, newest):
            kubernetes_validate.validate(thing, version, strict=True)


@needs_helm
def test_helm_finds_nothing_to_complain_of() -> None:
    if HELM is not None:
        done = subprocess.run(
            [HELM, "lint", "--strict", str(CHART)], capture_output=True, text=True, check=False
        )
        assert 0 == done.returncode, done.stdout
        return
    import helm_python

    print("Helm", helm_python.helm_sdk_version())
    report = helm_python.lint(CHART, strict=True)
    assert ([], []) == (
        report["errors"],
        [message for message in report["messages"] if message["severity"] > 1],
    )


@needs_helm
@needs_schemas
@pytest.mark.parametrize("case", CASES)
def test_the_chart_is_valid(
    case: str, render: Callable[[dict[str, Any]], list[dict[str, Any]]]
) -> None:
    objects = render(CASES[case])
    check_schemas(objects)
    names = {volume["name"] for volume in pod_of(objects)["volumes"]}
    for container in pod_of(objects)["containers"]:
        assert {mount["name"] for mount in container["volumeMounts"]} <= names
    for thing in objects:
        assert "llm" == thing["metadata"]["namespace"]
    labels = of_kind(objects, "DaemonSet")[0]["spec"]["template"]["metadata"]["labels"]
    for service in of_kind(objects, "Service"):
        assert service["spec"]["selector"].items() <= labels.items()


@needs_helm
def test_options_reach_the_supervisor(
    render: Callable[[dict[str, Any]], list[dict[str, Any]]],
) -> None:
    """Each PEGASHM_* variable that the chart writes is one that `pegashm serve` reads, with the value meant."""
    from pegashm.cli.serve import serve

    objects = render(EVERYTHING)
    supervisor, exporter = pod_of(objects)["containers"]
    said = environment(supervisor)
    known = {str(option.envvar) for option in serve.params if getattr(option, "envvar", None)}
    assert {name for name in said if name.startswith("PEGASHM_")} <= known
    assert (
        said.items()
        >= {
            "PEGASHM_NAME": "kv0",
            "PEGASHM_SIZE": "256G",
            "PEGASHM_GROUP": "1000",
            "PEGASHM_NUMA": "0,1",
            "PEGASHM_DIRECTORY": "/hugepages",
            "PEGASHM_SPILL": "/spill/0/kv0.spill /spill/1/kv0.spill",
            "PEGASHM_SPILL_SIZE": "1.5T",
            "PEGASHM_SPILL_DAILY_WRITES": "3T",
            "PEGASHM_LISTEN": "[$(POD_IP)]:7000",
            "PEGASHM_PEERS": "dns://kv-pegashm-peers.llm.svc:7000",
            "PEGASHM_REMOTE_BLOCKS": "1000000",
            "PEGASHM_REQUIRE_LOCK": "1",
        }.items()
    )
    assert ["pegashm", "exporter", "--name", "kv0", "--listen", "0.0.0.0:9470"] == exporter[
        "command"
    ]
    (peers,) = [s for s in of_kind(objects, "Service") if "peers" in s["metadata"]["name"]]
    assert [7000, 7001, 7002] == [port["port"] for port in peers["spec"]["ports"]]
    assert "None" == peers["spec"]["clusterIP"]
    (monitor,) = of_kind(objects, "ServiceMonitor")
    (metrics,) = [s for s in of_kind(objects, "Service") if "metrics" in s["metadata"]["name"]]
    assert (
        monitor["spec"]["selector"]["matchLabels"].items() <= metrics["metadata"]["labels"].items()
    )
    assert "metrics" == monitor["spec"]["endpoints"][0]["port"]


@needs_helm
def test_memory_is_the_arena_and_what_is_asked_for_beside_it(
    render: Callable[[dict[str, Any]], list[dict[str, Any]]],
) -> None:
    def resources(values: dict[str, Any]) -> dict[str, Any]:
        given: dict[str, Any] = pod_of(render(values))["containers"][0]["resources"]
        return given

    plain = resources({"arena": {"size": "64G"}})
    assert f"{(64 + 4) * 1024}Mi" == plain["limits"]["memory"] == plain["requests"]["memory"]
    huge = resources({"arena": {"size": "1T", "hugepages": "1Gi"}})
    assert ("4096Mi", "1Ti") == (huge["limits"]["memory"], huge["limits"]["hugepages-1Gi"])
    assert "1Ti" == huge["requests"]["hugepages-1Gi"], "Kubernetes wants both to be the same"
    rdma = resources(EVERYTHING)
    assert 2 == rdma["limits"]["rdma/hca_shared_devices_a"]


@needs_helm
def test_containers_may_do_what_they_must_and_no_more(
    render: Callable[[dict[str, Any]], list[dict[str, Any]]],
) -> None:
    for container in pod_of(render({}))["containers"]:
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"]
        assert not context["allowPrivilegeEscalation"]
        assert ["ALL"] == context["capabilities"]["drop"]
        writes = {m["name"] for m in container["volumeMounts"] if not m.get("readOnly")}
        adds = set(context["capabilities"].get("add", ()))
        if container["name"] == "supervisor":
            assert {"IPC_LOCK", "SYS_NICE", "DAC_OVERRIDE", "CHOWN", "FOWNER"} == adds
            assert {"shm", "run"} == writes
        else:
            assert (set(), set()) == (adds, writes)


@needs_helm
@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"arena": {"sise": "64G"}}, "sise"),
        ({"arena": {"size": "lots"}}, "size"),
        ({"arena": {"name": "no/slash"}}, "name"),
        ({"arena": {"hugepages": "4Mi"}}, "hugepages"),
        ({"resources": {"limits": {"memory": "1Gi"}}}, "limits"),
        ({"spill": {"hostPaths": ["relative"]}}, "hostPaths"),
        ({"extraEnv": {"PEGASHM_LOCK": 0}}, "extraEnv"),
        ({"peers": {"enabled": True, "keysSecret": ""}}, "keysSecret"),
        ({"rdma": {"enabled": True}}, "peers.enabled"),
    ],
)
def test_wrong_values_are_refused_by_name(
    values: dict[str, Any],
    says: str,
    render: Callable[[dict[str, Any]], list[dict[str, Any]]],
) -> None:
    with pytest.raises(HelmRefusedError, match=says):
        render(values)


def test_options_on_command_lines_are_those_of_the_commands() -> None:
    """What the manifest, the chart and the image put after `pegashm serve` and `pegashm exporter` exists."""
    from pegashm.cli.exporter import exporter
    from pegashm.cli.serve import serve

    known = {option for command in (serve, exporter) for p in command.params for option in p.opts}
    templates = CHART / "templates" / "daemonset.yaml"
    for path in (DEPLOY / "kubernetes.yaml", templates, DEPLOY / "Containerfile"):
        lines = [line for line in path.read_text().splitlines() if re.search("command:|^CMD", line)]
        said = {option for line in lines for option in re.findall(r"--[a-z-]+", line)}
        assert said
        assert said <= known | {"--interval", "--timeout", "--start-period"}, path


def test_the_charts_version_is_the_packages() -> None:
    import pegashm

    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert pegashm.__version__ == chart["appVersion"]


@needs_schemas
def test_the_manifest_to_read_and_change_is_valid() -> None:
    from pegashm.cli.serve import serve

    objects = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
    check_schemas(objects)
    known = {str(option.envvar) for option in serve.params if getattr(option, "envvar", None)}
    for container in pod_of(objects)["containers"]:
        said = environment(container)
        assert {name for name in said if name.startswith("PEGASHM_")} <= known

"""The objects under cluster/kuberay: fields that KubeRay knows, and values that agree with recipes, settings and image.

The schema of KubeRay is in no package, so the fields of its CRD reference (version 1.6) stand here.
"""

import re
import shlex
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from janus_dist.cli.job import split_arguments
from janus_dist.config.load import load
from janus_dist.config.recipe import StageRecipe
from tests.cluster.kustomize import render

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "cluster" / "kuberay"
IN_IMAGE = "/opt/janus-dist"
JOBS = ("job", "job-rdma", "job-efa", "job-elastic")
VARIANTS = (*JOBS, "cluster")
GIB = 2**30

# Required fields stand first, before the bar.
FIELDS = {
    "RayJob": """entrypoint | activeDeadlineSeconds backoffLimit rayClusterSpec submitterPodTemplate metadata
        clusterSelector submitterConfig managedBy deletionStrategy runtimeEnvYAML jobId submissionMode
        entrypointResources entrypointNumCpus entrypointNumGpus ttlSecondsAfterFinished preRunningDeadlineSeconds
        shutdownAfterJobFinishes suspend""",
    "RayCluster": """headGroupSpec rayVersion workerGroupSpecs | upgradeStrategy authOptions suspend managedBy
        autoscalerOptions headServiceAnnotations enableInTreeAutoscaling gcsFaultToleranceOptions""",
    "head": "template rayStartParams | headService enableIngress resources labels serviceType",
    "workers": """template rayStartParams groupName minReplicas maxReplicas | suspend replicas idleTimeoutSeconds
        resources labels scaleStrategy numOfHosts""",
    "autoscaler": """| resources image imagePullPolicy securityContext idleTimeoutSeconds upscalingMode version env
        envFrom volumeMounts""",
    "auth": "mode | enableK8sTokenAuth secretName",
    "pod": """containers | restartPolicy terminationGracePeriodSeconds securityContext tolerations affinity nodeSelector
        volumes""",
    "container": "name image resources | imagePullPolicy lifecycle securityContext ports env envFrom volumeMounts",
}
NETWORK = {"NCCL_IB_HCA", "FI_PROVIDER", "FI_EFA_USE_DEVICE_RDMA"}
"""Names that NCCL and libfabric document."""
OURS = {"JANUS_WAIT_S"}
OTHERS = {"HF_HUB_OFFLINE"}


def cluster_spec(variant: str) -> dict[str, Any]:
    (found,) = (one for one in render(FOLDER / variant) if one["kind"] in ("RayJob", "RayCluster"))
    return found["spec"]["rayClusterSpec"] if found["kind"] == "RayJob" else found["spec"]


def job_spec(variant: str = "job") -> dict[str, Any]:
    (found,) = (one for one in render(FOLDER / variant) if one["kind"] == "RayJob")
    return found["spec"]


def groups(variant: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The group of the head and that of the workers."""
    spec = cluster_spec(variant)
    (workers,) = spec["workerGroupSpecs"]
    return spec["headGroupSpec"], workers


def pods(variant: str) -> list[dict[str, Any]]:
    found = [group["template"] for group in groups(variant)]
    return found + ([job_spec(variant)["submitterPodTemplate"]] if variant in JOBS else [])


def container(template: dict[str, Any]) -> dict[str, Any]:
    (found,) = template["spec"]["containers"]
    return found


def recipe(variant: str = "job") -> StageRecipe:
    _, _, _, *arguments = shlex.split(job_spec(variant)["entrypoint"])
    files, overrides = split_arguments(arguments)
    return load(StageRecipe, [ROOT / file for file in files], overrides).recipe


def in_bytes(quantity: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(Ki|Mi|Gi|)", quantity).groups()  # type: ignore[union-attr]
    return int(number) * {"": 1, "Ki": 2**10, "Mi": 2**20, "Gi": GIB}[unit]


def check_fields(what: str, found: dict[str, Any]) -> None:
    required, others = (set(part.split()) for part in FIELDS[what].split("|"))
    assert required <= set(found) <= required | others, what


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_stand_in_renders_what_kubectl_does(variant):
    if not shutil.which("kubectl"):
        pytest.skip("no kubectl here")
    command = ["kubectl", "kustomize", str(FOLDER / variant)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    theirs = {one["kind"]: one for one in yaml.safe_load_all(shown)}
    assert theirs == {one["kind"]: one for one in render(FOLDER / variant)}


@pytest.mark.parametrize("variant", VARIANTS)
def test_kuberay_knows_every_field(variant):
    if variant in JOBS:
        check_fields("RayJob", job_spec(variant))
    spec = cluster_spec(variant)
    check_fields("RayCluster", spec)
    check_fields("auth", spec["authOptions"])
    check_fields("autoscaler", spec.get("autoscalerOptions", {}))
    for what, group in zip(("head", "workers"), groups(variant), strict=True):
        check_fields(what, group)
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    for pod in pods(variant):
        check_fields("pod", pod["spec"])
        check_fields("container", container(pod))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_volume_is_mounted_and_every_mount_has_one(variant):
    for pod in pods(variant):
        volumes = [volume["name"] for volume in pod["spec"].get("volumes", [])]
        mounts = container(pod).get("volumeMounts", [])
        assert len(volumes) == len(set(volumes))
        assert set(volumes) == {mount["name"] for mount in mounts}
        assert len({mount["mountPath"] for mount in mounts}) == len(mounts)


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_rank_runs_on_the_head(variant):
    head, _ = groups(variant)
    assert head["rayStartParams"] == {"num-cpus": "0", "num-gpus": "0"}
    assert "nvidia.com/gpu" not in container(head["template"])["resources"]["limits"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_shared_memory_holds_the_object_store_and_what_nccl_takes(variant):
    _, workers = groups(variant)
    (shm,) = (volume for volume in workers["template"]["spec"]["volumes"] if volume["name"] == "shm")
    (mount,) = (one for one in container(workers["template"])["volumeMounts"] if one["name"] == "shm")
    size, store = in_bytes(shm["emptyDir"]["sizeLimit"]), int(workers["rayStartParams"]["object-store-memory"])
    assert shm["emptyDir"]["medium"] == "Memory" and mount["mountPath"] == "/dev/shm"
    assert store + 8 * GIB <= size < in_bytes(container(workers["template"])["resources"]["limits"]["memory"]) / 4


@pytest.mark.parametrize("variant", VARIANTS)
def test_pods_may_do_little(variant):
    for pod in pods(variant):
        assert pod["spec"]["securityContext"]["runAsNonRoot"] and pod["spec"]["securityContext"]["runAsUser"] == 1000
        rights = container(pod)["securityContext"]
        assert rights["allowPrivilegeEscalation"] is False and rights["capabilities"]["drop"] == ["ALL"]
        assert set(rights["capabilities"].get("add", [])) <= {"IPC_LOCK"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod["spec"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_ray_wants_a_token_and_only_pods_of_the_run_reach_it(variant):
    spec = cluster_spec(variant)
    assert spec["authOptions"]["mode"] == "token" and spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    (policy,) = (one for one in render(FOLDER / variant) if one["kind"] == "NetworkPolicy")
    labels = policy["spec"]["podSelector"]["matchLabels"]
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    assert policy["spec"]["ingress"][0]["from"][0]["podSelector"]["matchLabels"] == labels
    assert all(labels.items() <= pod["metadata"]["labels"].items() for pod in pods(variant))
    assert all("ports" in rule or rule is policy["spec"]["ingress"][0] for rule in policy["spec"]["ingress"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_prometheus_reaches_the_figures_and_no_other_port(variant):
    (policy,) = (one for one in render(FOLDER / variant) if one["kind"] == "NetworkPolicy")
    (rule,) = (rule for rule in policy["spec"]["ingress"] if rule.get("ports") == [{"port": 8080}])
    (namespace,) = rule["from"][0]["namespaceSelector"]["matchLabels"].values()
    assert f"lets the namespace `{namespace}` reach port 8080" in (ROOT / "docs" / "cluster.md").read_text()
    for group in groups(variant):  # KubeRay's own port, unless the parameters of `ray start` say another
        assert "metrics-export-port" not in group["rayStartParams"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_pod_has_longer_to_go_than_the_save_and_that_longer_than_a_collective(variant):
    saves = []
    for group in groups(variant):
        pod = group["template"]
        script, notice, save_s = container(pod)["lifecycle"]["preStop"]["exec"]["command"]
        assert script == f"{IN_IMAGE}/cluster/leave.sh" and (ROOT / "cluster/leave.sh").exists()
        assert int(save_s) + 60 <= pod["spec"]["terminationGracePeriodSeconds"]
        assert variant not in JOBS or notice == recipe(variant).cluster.notice_file
        saves.append(int(save_s))
    if variant in JOBS:
        asked = yaml.safe_load(job_spec(variant)["runtimeEnvYAML"])["env_vars"]
        assert int(asked["RAY_JOB_STOP_WAIT_TIME_S"]) >= max(saves)
        assert min(saves) >= recipe(variant).engine.timeout_s


@pytest.mark.parametrize("variant", JOBS)
def test_the_entrypoint_runs_and_its_paths_lie_on_the_shared_volume(variant):
    spec = job_spec(variant)
    assert not set("&|;<>$`\n") & set(spec["entrypoint"])  # KubeRay gives its words to a shell that is not the job's
    python, *scripts = shlex.split(spec["entrypoint"])[:3]
    assert python == "python" and all((ROOT / script).exists() for script in scripts)
    mounts = [mount["mountPath"] for mount in container(groups(variant)[1]["template"])["volumeMounts"]]
    found = recipe(variant)
    sources = [path for stream in found.data.sources.values() for path in stream.values()]
    weights = [found.data.tokenizer, found.data.vq_weights]
    for path in (found.run.root, found.data.root, *sources, *weights):
        assert any(f"{IN_IMAGE}/{path}".startswith(f"{mount}/") for mount in mounts), path


@pytest.mark.parametrize("variant", JOBS)
def test_the_nodes_hold_the_ranks_of_the_recipe(variant):
    _, workers = groups(variant)
    cluster, limits = recipe(variant).cluster, container(workers["template"])["resources"]["limits"]
    gpus = int(limits["nvidia.com/gpu"])
    assert cluster.gpu and workers["maxReplicas"] * gpus == cluster.workers
    assert int(limits["cpu"]) >= gpus * cluster.cpus_per_worker
    assert cluster.min_workers is not None and cluster.min_workers % gpus == 0
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    assert limits == container(workers["template"])["resources"]["requests"]
    assert ("enableInTreeAutoscaling" in cluster_spec(variant)) == (variant == "job-elastic")


def test_a_failed_job_is_tried_again_on_a_new_cluster():
    spec = job_spec()
    assert spec["backoffLimit"] > 0 and spec["shutdownAfterJobFinishes"] and "clusterSelector" not in spec


@pytest.mark.parametrize("variant", VARIANTS)
def test_names_in_the_environment_are_known(variant):
    """What is misspelt has no effect, and nobody notices."""
    names = {entry["name"] for pod in pods(variant) for entry in container(pod).get("env", [])}
    if variant in JOBS:
        names |= set(yaml.safe_load(job_spec(variant)["runtimeEnvYAML"])["env_vars"])
    assert all(name in (ROOT / "cluster" / "wait.py").read_text() for name in names & OURS)
    of_ray = {name for name in names if name.startswith("RAY_")}
    assert names - of_ray <= NETWORK | OURS | OTHERS
    sources = ["_common", "_private", "train", "dashboard/modules/job"]
    text = "".join(path.read_text() for part in sources for path in (Path(ray.__file__).parent / part).rglob("*.py"))
    assert of_ray and {name for name in of_ray if f'"{name}"' not in text} == set()


@pytest.mark.parametrize("variant", VARIANTS)
def test_versions_are_those_that_are_installed(variant):
    assert str(cluster_spec(variant)["rayVersion"]) == version("ray") == ray.__version__
    assert {container(pod)["image"] for pod in pods(variant)} == {f"janus-dist:{version('janus-dist')}"}

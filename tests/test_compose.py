"""The container files say what the code says: commands, settings, extras, files to copy."""

import os
import re
import subprocess
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.processes import STOP_WAIT_S
from app.run import read_procfile
from tasks.settings import PREFIX, Settings

ROOT = Path(__file__).resolve().parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILES = ("docker/Dockerfile.web", "docker/Dockerfile.worker")


def packages_of(extra: str) -> set[str]:
    """Names of what `pip install .[extra]` asks for, through extras of extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = set()
    for requirement in project["optional-dependencies"][extra] + project["dependencies"]:
        nested = re.fullmatch(rf"{project['name']}\[(.+)\]", requirement)
        if nested:
            names |= set.union(*(packages_of(name) for name in nested[1].split(",")))
        else:
            names.add(re.match(r"[\w.-]+", requirement)[0].lower())
    return names


def copied_files(dockerfile: str) -> list[str]:
    lines = re.findall(r"^COPY (.+)$", (ROOT / dockerfile).read_text(), re.MULTILINE)
    return [source for line in lines for source in line.split()[:-1]]


def test_settings_have_the_programs_own_defaults() -> None:
    known = {PREFIX + spec.name.upper(): spec.default for spec in fields(Settings)}
    text = Path(ROOT, "docker-compose.yml").read_text()
    told = dict(re.findall(r"\$\{(SUPERTONIC_\w+):-(.*?)\}", text))
    assert len(told) > 10
    assert told == {name: str(known[name]) for name in told}


def test_any_other_setting_may_stand_in_a_file_for_all_services_of_ours() -> None:
    for name, service in SERVICES.items():
        if "build" in service:
            assert service["env_file"] == [{"path": ".env", "required": False}], name


def test_settings_that_a_file_cannot_change_are_named_at_the_top() -> None:
    fixed = {
        name
        for service in SERVICES.values()
        for name, value in service.get("environment", {}).items()
        if name.startswith(PREFIX) and "${" not in str(value)
    }
    top = (ROOT / "docker-compose.yml").read_text().partition("x-service")[0]
    named = set(re.findall(rf"{PREFIX}[A-Z_]+\b(?!=)", top))
    assert fixed and named == fixed


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_has_a_health_check_and_time_to_stop(name: str) -> None:
    service = SERVICES[name]
    assert service["healthcheck"]["test"]
    assert int(service["stop_grace_period"].removesuffix("s")) > STOP_WAIT_S
    assert service["restart"] == "unless-stopped"


def test_cpu_and_gpu_workers_are_alternatives_and_flower_is_a_choice() -> None:
    profiles = {name: service.get("profiles", []) for name, service in SERVICES.items()}
    assert profiles["worker"] == ["cpu"]
    assert profiles["worker-gpu"] == ["gpu"]
    assert profiles["flower"] == ["flower"]
    assert profiles["wyoming"] == ["wyoming"]
    assert profiles["rabbitmq"] == ["rabbitmq"]
    assert profiles["prometheus"] == profiles["grafana"] == ["monitoring"]
    assert [name for name, chosen in profiles.items() if not chosen] == ["redis", "web", "files"]


def test_workers_scale_because_nothing_of_them_is_unique() -> None:
    for name in ("worker", "worker-gpu"):
        assert not {"container_name", "hostname", "ports"} & SERVICES[name].keys()


def test_the_gpu_worker_asks_for_an_nvidia_device() -> None:
    reservations = SERVICES["worker-gpu"]["deploy"]["resources"]["reservations"]
    assert reservations["devices"][0]["driver"] == "nvidia"
    assert SERVICES["worker-gpu"]["environment"]["SUPERTONIC_DEVICE"] == "cuda"
    assert SERVICES["worker"]["environment"]["SUPERTONIC_DEVICE"] == "cpu"


def test_ports_are_published_for_this_machine_only_unless_asked() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published.keys() == {"web", "wyoming", "flower", "prometheus", "grafana"}
    # Who opens the web, which may have keys, has not opened what can have none.
    (port,) = published.pop("wyoming")
    assert port.startswith("${WYOMING_ADDRESS:-127.0.0.1}:")
    for ports in published.values():
        assert all(port.startswith("${PUBLISH_ADDRESS:-127.0.0.1}:") for port in ports)


@pytest.mark.parametrize("path", ["docker-compose.yml", "Procfile", *DOCKERFILES])
def test_every_setting_used_exists(path: str) -> None:
    known = {f"SUPERTONIC_{name.upper()}" for name in Settings.__dataclass_fields__}
    used = set(re.findall(r"SUPERTONIC_[A-Z_]+", (ROOT / path).read_text()))
    assert used <= known


def test_images_beside_the_workers_have_no_torch() -> None:
    for name in ("web", "files", "wyoming", "flower"):
        build = SERVICES[name]["build"]
        assert build["dockerfile"] == "docker/Dockerfile.web"
        packages = packages_of(build.get("args", {}).get("EXTRA", "web"))
        assert "celery" in packages
        assert "torch" not in packages
    assert "torch" in packages_of("worker")


def test_the_cpu_image_takes_the_pinned_torch() -> None:
    command = re.search(r"grep -o '[^']+' pyproject.toml", (ROOT / DOCKERFILES[1]).read_text())
    found = subprocess.run(command[0], shell=True, cwd=ROOT, capture_output=True, text=True)
    assert re.fullmatch(r"torch==\d+\.\d+\.\d+\n", found.stdout)


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_what_an_image_copies_exists_and_reaches_the_builder(dockerfile: str) -> None:
    allowed = (ROOT / ".dockerignore").read_text().splitlines()
    sources = copied_files(dockerfile)
    assert "tasks" in sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in allowed


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_images_do_not_run_as_root(dockerfile: str) -> None:
    users = re.findall(r"^USER (.+)$", (ROOT / dockerfile).read_text(), re.MULTILINE)
    assert users == ["supertonic"]


@pytest.mark.parametrize("name", ["worker", "files", "web", "wyoming"])
def test_containers_run_what_the_procfile_runs(name: str) -> None:
    def without_node_name(command: str) -> str:
        return re.sub(r" -n \S+", "", command.removeprefix("exec "))

    assert without_node_name(SERVICES[name]["command"]) == without_node_name(read_procfile()[name])


def test_flower_keeps_a_bounded_number_of_chunks() -> None:
    command = SERVICES["flower"]["command"][-1]
    for text in (command, read_procfile()["flower"]):
        assert 100 <= int(re.search(r"--max_tasks=(\d+)", text)[1]) <= 10_000


def test_redis_keeps_its_data_and_refuses_rather_than_forgets() -> None:
    assert "--appendonly yes" in SERVICES["redis"]["command"]
    for command in (SERVICES["redis"]["command"], read_procfile()["redis"]):
        assert "--maxmemory-policy noeviction" in command
    assert SERVICES["redis"]["volumes"] == ["redis:/data"]


@pytest.mark.parametrize(
    "command, variable, told",
    [
        (SERVICES["flower"]["command"], "FLOWER_BASIC_AUTH", "set it to user:password"),
        (SERVICES["grafana"]["entrypoint"], "GF_SECURITY_ADMIN_PASSWORD", "set GRAFANA_PASSWORD"),
    ],
)
def test_what_can_be_logged_into_does_not_start_without_a_password(
    command: list[str], variable: str, told: str
) -> None:
    command = [part.replace("$$", "$") for part in command]
    env = {"PATH": os.environ["PATH"], variable: ""}
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert ended.returncode != 0
    assert told in ended.stderr


def test_monitoring_finds_the_files_it_is_given_and_asks_the_web() -> None:
    for name in ("prometheus", "grafana"):
        for mount in SERVICES[name]["volumes"]:
            source = mount.split(":")[0]
            assert (ROOT / source).exists() if source[0] == "." else source in COMPOSE["volumes"]
    config = yaml.safe_load((ROOT / "prometheus/prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    assert job["static_configs"][0]["targets"] == ["web:8002"]
    assert SERVICES["web"]["environment"]["SUPERTONIC_PORT"] == 8002
    for rules in config["rule_files"]:
        assert (ROOT / "prometheus" / rules).exists()
    provider = yaml.safe_load((ROOT / "grafana/provisioning/dashboards/supertonic.yml").read_text())
    folder = provider["providers"][0]["options"]["path"]
    assert any(f":{folder}/" in mount for mount in SERVICES["grafana"]["volumes"])


def test_every_service_of_ours_has_its_own_health_check() -> None:
    checks = {name: service["healthcheck"]["test"] for name, service in SERVICES.items()}
    known = re.findall(r"^def ([a-z]+)\(", (ROOT / "docker/healthy.py").read_text(), re.MULTILINE)
    assert checks.pop("redis") == ["CMD", "redis-cli", "ping"]
    assert checks.pop("worker-gpu") == checks["worker"]
    # Programs of others answer for themselves.
    assert "rabbitmq-diagnostics" in checks.pop("rabbitmq")
    assert "/-/healthy" in checks.pop("prometheus")[-1]
    assert "/api/health" in checks.pop("grafana")[-1]
    for name, test in checks.items():
        assert test == ["CMD", "python", "docker/healthy.py", name]
        assert name in known

"""Dashboard and alerts ask only for figures that the service really shows."""

import json
import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml

from tasks.measures import ALL
from tests.stack import ROOT, Stack, wait_for

DASHBOARD: dict[str, Any] = json.loads((ROOT / "grafana/dashboard.json").read_text())
ALERTS: dict[str, Any] = yaml.safe_load((ROOT / "prometheus/alerts.yml").read_text())
SERIES = re.compile(r"\bsupertonic_\w+")
SELECTOR = re.compile(r'(supertonic_\w+)\{(\w+)(=~?)"([^"]*)"\}')


def expressions() -> list[str]:
    targets = [t["expr"] for panel in DASHBOARD["panels"] for t in panel.get("targets", [])]
    return targets + [rule["expr"] for group in ALERTS["groups"] for rule in group["rules"]]


def test_every_series_asked_for_is_shown(server: Stack) -> None:
    with server.stream({"text": "One sentence that is short. " * 12}) as response:
        assert b"event: done" in response.content
    asked = {series for expression in expressions() for series in SERIES.findall(expression)}
    assert len(asked) > 20

    def missing() -> set[str]:
        text = server.get("/metrics?format=prometheus").text
        shown = set(re.findall(r"^(supertonic_\w+)[{ ]", text, re.MULTILINE))
        return asked - shown - set(re.findall(r"^# TYPE (\w+)", text, re.MULTILINE))

    # A worker sends its figures twice a second.
    wait_for(lambda: not missing(), 10, f"shown as well: {missing()}")


def test_every_measure_is_on_the_dashboard() -> None:
    text = " ".join(expressions())
    for measure in ALL:
        assert measure.name in text, f"{measure.name} is measured for nobody"


def test_bounds_and_labels_asked_for_exist(server: Stack) -> None:
    text = server.get("/metrics?format=prometheus").text
    for expression in expressions():
        for series, label, operator, value in SELECTOR.findall(expression):
            found = set(re.findall(rf'^{series}{{.*\b{label}="([^"]*)"', text, re.MULTILINE))
            if series == "supertonic_http_requests_total":
                continue  # errors may not have happened yet
            wanted = value.split("|") if operator == "=~" else [value]
            assert set(wanted) <= found, expression


def test_the_dashboard_can_be_provisioned() -> None:
    assert DASHBOARD["uid"] and DASHBOARD["title"]
    source = yaml.safe_load((ROOT / "grafana/provisioning/datasources/prometheus.yml").read_text())
    assert [one["type"] for one in source["datasources"]] == ["prometheus"]
    variable = DASHBOARD["templating"]["list"][0]
    assert (variable["name"], variable["query"]) == ("datasource", "prometheus")
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert place["x"] + place["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}" and panel["targets"]


def test_every_alert_says_how_bad_it_is_and_what_it_means() -> None:
    operating = (ROOT / "docs/operating.md").read_text()
    for group in ALERTS["groups"]:
        for rule in group["rules"]:
            assert rule["labels"]["severity"] in ("page", "warning")
            assert rule["annotations"]["summary"] and rule["for"]
            assert rule["alert"] in operating, "docs/operating.md says what to do"


def test_every_family_is_explained(server: Stack) -> None:
    text = server.get("/metrics?format=prometheus").text
    families = set(re.findall(r"^# TYPE (\w+)", text, re.MULTILINE))
    operating = (ROOT / "docs/operating.md").read_text()
    explained = set(re.findall(r"`(supertonic_\w+)`", operating))
    twice = {f"supertonic_worker_{m.name}" for m in ALL if m.is_per_worker}
    assert families - explained - twice == set()
    assert explained - families == set()


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Prometheus) is missing")
def test_alerts_come_when_they_should_and_not_before() -> None:
    command = ["promtool", "test", "rules", "alerts_test.yml"]
    done = subprocess.run(command, cwd=ROOT / "prometheus", capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

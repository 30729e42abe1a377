"""Dashboard and alert rules against a running service: what they ask for exists, and what exists is asked for."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.files import GOLDEN, drawings
from tests.service import Service

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana" / "diptych.json").read_text())
RULES = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"][0]["rules"]
A, B = drawings("Angelic/character01"), drawings("Kannada/character02")
PROMTOOL = shutil.which("promtool")


def panels() -> Iterator[dict[str, Any]]:
    yield from (panel for panel in DASHBOARD["panels"] if panel["type"] != "row")


def expressions() -> list[str]:
    shown = [target["expr"] for panel in panels() for target in panel["targets"]]
    return shown + [rule["expr"] for rule in RULES]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One that keeps all that there is to keep on this machine's disks."""
    running = Service(GOLDEN, tmp_path_factory.mktemp("watched") / "data", keep_images="yes")
    yield running
    running.stop()


@pytest.fixture(scope="module")
def families(service: Service) -> dict[str, dict[str, set[str]]]:
    """Names of series that a service in use tells, each with its labels and their values."""
    service.enroll("watched", A[0], collection="watched")
    service.verify(A[0], A[1])
    service.search(A[1], collection="watched")
    service.client.post("/embed", files={"image": b""})
    found: dict[str, dict[str, set[str]]] = {}
    for family in text_string_to_metric_families(service.client.get("/metrics").text):
        for sample in family.samples:
            labels = found.setdefault(sample.name, {"job": {"diptych"}, "instance": set()})
            for label, value in sample.labels.items():
                labels.setdefault(label, set()).add(value)
    return found


def test_what_dashboard_and_alerts_ask_for_exists(families: dict[str, dict[str, set[str]]]) -> None:
    """Each name, and each label by which it is chosen or summed."""
    for expression in expressions():
        for name, matchers in re.findall(r"\b((?:diptych|process)_\w+)(?:\{(.*?)\})?", expression):
            assert name in families, expression
            for label in re.findall(r"(\w+)\s*[=!]", re.sub(r'"[^"]*"', '""', matchers)):
                assert label in families[name], (expression, label)
        grouped = {one.strip() for listed in re.findall(r"by \((.*?)\)", expression) for one in listed.split(",")}
        names = set(re.findall(r"\b(?:diptych|process)_\w+", expression))
        assert all(grouped <= set(families[name]) for name in names), expression


def test_what_the_service_tells_is_shown_or_watched(families: dict[str, dict[str, set[str]]]) -> None:
    """No metric that nobody looks at."""
    asked = " ".join(expressions())
    told = {re.sub("_(bucket|sum|count)$", "", name) for name in families if name.startswith("diptych_")}
    assert {name for name in told if name not in asked} == set()


def test_every_check_and_stage_is_told_by_name(families: dict[str, dict[str, set[str]]]) -> None:
    """So that a panel has a line for each from the start."""
    assert {"encoder", "gallery", "disk", "accepting"} <= families["diptych_check"]["check"]
    assert families["diptych_stage_seconds_count"]["stage"] == {"wait", "decode", "embed", "search", "commit"}
    assert families["diptych_disk_free_bytes"]["place"] == {"gallery", "images"}


def test_the_dashboard_is_one_that_grafana_imports() -> None:
    """Ids and places of its own for each panel, a data source that can be chosen, a unit for each axis."""
    assert DASHBOARD["schemaVersion"] >= 36 and DASHBOARD["uid"] and "id" not in DASHBOARD
    variables = {one["name"]: one["type"] for one in DASHBOARD["templating"]["list"]}
    assert variables == {"datasource": "datasource", "instance": "query"}
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells
    for panel in panels():
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["fieldConfig"]["defaults"]["unit"] and panel["title"]
        references = [target["refId"] for target in panel["targets"]]
        assert references and len(references) == len(set(references))
        assert all("$instance" in target["expr"] for target in panel["targets"])


def test_every_alert_says_what_to_do() -> None:
    """And is tried on made-up series."""
    tried = (DEPLOY / "prometheus" / "alerts_test.yml").read_text()
    for rule in RULES:
        assert rule["annotations"]["summary"] and rule["annotations"]["action"], rule["alert"]
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert f"alertname: {rule['alert']}" in tried


@pytest.mark.skipif(PROMTOOL is None, reason="promtool (Debian: prometheus) is not installed")
def test_prometheus_takes_configuration_and_rules_and_they_alert() -> None:
    """By its own tool."""
    for arguments in (["check", "config", "prometheus.yml"], ["test", "rules", "alerts_test.yml"]):
        done = subprocess.run(
            [str(PROMTOOL), *arguments], cwd=DEPLOY / "prometheus", capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

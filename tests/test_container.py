"""What the container files promise to whoever runs them as they are."""

from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent


def test_the_compose_file_publishes_on_loopback_only_because_it_allows_no_keys() -> None:
    """The one is safe only with the other."""
    service = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["diptych"]
    assert service["environment"]["DIPTYCH_ALLOW_NO_KEYS"] == "1"
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_the_compose_file_keeps_the_root_read_only_and_the_data_in_a_volume() -> None:
    """With a tmpfs for uploads that do not fit in memory."""
    document = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    service = document["services"]["diptych"]
    assert service["read_only"] is True and service["cap_drop"] == ["ALL"]
    assert "gallery:/data" in service["volumes"] and "gallery" in document["volumes"]
    assert any(mount.startswith("/tmp") for mount in service["tmpfs"])


def test_the_image_runs_as_an_ordinary_user_and_does_not_allow_missing_keys_by_itself() -> None:
    """Whoever publishes it decides that."""
    last_stage = (ROOT / "Dockerfile").read_text().split("\nFROM ")[-1]
    assert "USER 10001:10001" in last_stage
    assert "ALLOW_NO_KEYS" not in last_stage
    assert "HEALTHCHECK" in last_stage and "curl" not in last_stage


def test_the_profile_of_replicas_shares_one_postgresql_and_nothing_else() -> None:
    """Both on loopback, both without a volume of their own, a password only from the outside."""
    document = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    replicas = [document["services"][name] for name in ("replica-a", "replica-b")]
    postgres = document["services"]["postgres"]
    for replica in replicas:
        assert replica["profiles"] == postgres["profiles"] == ["replicas"]
        assert all(port.startswith("127.0.0.1:") for port in replica["ports"])
        assert "volumes" not in replica and replica["read_only"] is True
        assert replica["environment"]["DIPTYCH_DATABASE_URL"].startswith("postgresql+psycopg://")
        assert replica["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    assert "ports" not in postgres
    assert postgres["environment"]["POSTGRES_PASSWORD"] == "${DIPTYCH_DB_PASSWORD:-}"

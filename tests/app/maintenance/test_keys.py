"""diptych keys: keys come and go while the service runs."""

from pathlib import Path

from tests.keys import ask, becomes, made
from tests.service import Serve, diptych


def test_keys_come_and_go_without_a_restart_and_their_loss_opens_nothing(serve: Serve, tmp_path: Path) -> None:
    """The first key closes an open service; after the last is revoked a service beyond loopback stays closed."""
    data = tmp_path / "data"
    service = serve(data_dir=data)
    assert ask(service, "GET", "/collections").status_code == 200
    key = made(data, "first")
    assert becomes(service, None, 401) and becomes(service, key, 200)
    assert diptych("keys", "create", "first", "--data-dir", data).returncode == 2
    shown = diptych("keys", "list", "--data-dir", data).stdout
    assert "first" in shown and key["Authorization"].partition(" ")[2] not in shown
    assert key["Authorization"].partition(" ")[2].encode() not in (data / "diptych.db").read_bytes()
    service.stop()
    everywhere = serve(data_dir=data, host="0.0.0.0")
    assert becomes(everywhere, key, 200)
    refused = diptych("keys", "revoke", "first", "--data-dir", data)
    assert refused.returncode == 2 and "the last key" in refused.stderr
    assert diptych("keys", "revoke", "first", "--last", "--data-dir", data).returncode == 0
    assert becomes(everywhere, key, 401) and becomes(everywhere, None, 401)
    assert diptych("keys", "revoke", "first", "--data-dir", data).returncode == 2


def test_a_restored_gallery_has_the_keys_of_the_one_that_it_replaces(tmp_path: Path) -> None:
    """What was revoked since the backup stays so; where nothing is replaced, the backup's are valid, and named."""
    data, backup = tmp_path / "data", tmp_path / "backup"
    for name in ("old", "kept"):
        made(data, name)
    assert diptych("backup", backup, "--data-dir", data).returncode == 0
    assert diptych("keys", "revoke", "old", "--data-dir", data).returncode == 0
    made(data, "new")
    done = diptych("restore", backup, "--data-dir", data, "--replace")
    assert done.returncode == 0 and "Valid API keys: kept, new" in done.stdout, done.stderr
    elsewhere = diptych("restore", backup, "--data-dir", tmp_path / "elsewhere")
    assert "Valid API keys: kept, old" in elsewhere.stdout

"""What a restore does to keys and to galleries of an earlier version."""

import hashlib
import json
import shutil
from pathlib import Path

import sqlalchemy as sa

from app.database.sqlite import SQLite
from app.database.tables import api_key
from app.gallery.keys import create_key
from app.maintenance.backup import restore
from tests.files import DATA


def test_a_backup_of_an_earlier_version_changes_no_scopes_of_the_keys_that_stay(tmp_path: Path) -> None:
    """Keys of the replaced gallery stay as they are: what the update adds to old keys is for those of the backup."""
    backup, data = tmp_path / "backup", tmp_path / "data"
    backup.mkdir()
    shutil.copy(DATA / "galleries" / "schema_0003.db", backup / "diptych.db")
    manifest = {
        "created_at": "2026-11-24T00:00:00+00:00",
        "sha256": hashlib.sha256((backup / "diptych.db").read_bytes()).hexdigest(),
        **{"references": 5, "images": 0, "images_elsewhere": 0, "model_id": "model"},
    }
    (backup / "backup.json").write_text(json.dumps(manifest))
    database = SQLite(data / "diptych.db")
    database.migrate()
    database.write(lambda connection: create_key(connection, "door", ["verify"], []))
    database.close()
    restore(backup, data, replace=True, progress=False)
    database = SQLite(data / "diptych.db")
    database.migrate()
    with database.read() as connection:
        rows = connection.execute(sa.select(api_key.c.name, api_key.c.scopes)).all()
    database.close()
    assert [tuple(row) for row in rows] == [("door", ["verify"])]
    assert sorted(path.name for path in data.iterdir() if path.name.startswith("diptych")) == [
        "diptych.db",
        "diptych.db.lock",
    ]

"""What a gallery and its commands import: no web framework, no runtime, no index."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent.parent
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for room in ("database", "gallery")
    for path in sorted((ROOT / "app" / room).glob("*.py"))
]


def test_database_gallery_keys_and_backup_import_neither_fastapi_nor_faiss_nor_onnx_runtime() -> None:
    """They start fast, and can run where none of these is installed."""
    modules = [*MODULES, "app.maintenance.keys", "app.maintenance.backup", "app.maintenance.commands"]
    script = f"import sys, {', '.join(modules)}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "sqlalchemy" in loaded
    assert not loaded & {"fastapi", "starlette", "uvicorn", "faiss", "onnxruntime"}

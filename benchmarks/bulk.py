"""`diptych import` beside the encoder it waits for: images a second, and the ratio.

    python -m benchmarks.bulk CHECKPOINT FOLDER [--images 5000]

Three loops over the same files, in turns, medians of three: the encoder alone on images that are decoded already;
reading, decoding and embedding; and the import of them, into an empty gallery on the temporary directory's disk.
"""

import argparse
import itertools
import tempfile
import time
from pathlib import Path

import numpy as np

from app.checkpoint.bulk import BATCH, MAX_BYTES, MAX_PIXELS, decode_all, embed_all, threads
from app.checkpoint.encoder import Encoder
from app.checkpoint.store import load_checkpoint
from app.database.sqlite import SQLite
from app.gallery.encoders import Loaded
from app.gallery.originals import Originals
from app.image.policy import decode
from app.maintenance.import_folder import import_folder

TURNS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=5000)
    given = parser.parse_args()
    encoder = Encoder(load_checkpoint(given.checkpoint), threads())
    found = (path for path in sorted(given.folder.rglob("*")) if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    files = list(itertools.islice(found, given.images))
    seconds: dict[str, list[float]] = {"the encoder alone": [], "read, decoded, embedded": [], "imported": []}
    with tempfile.TemporaryDirectory(prefix="diptych-bench-") as made:
        root = Path(made)
        for path in files:
            link = root / "images" / path.relative_to(given.folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())
        few = [
            decode(path.read_bytes(), encoder.preprocessing, max_bytes=MAX_BYTES, max_pixels=MAX_PIXELS)
            for path in files[: 10 * BATCH]
        ]
        batches = [np.stack(few[start : start + BATCH]) for start in range(0, len(few), BATCH)]
        for turn in range(TURNS):
            started = time.perf_counter()
            for at in range(-(-len(files) // BATCH)):
                encoder.embed(batches[at % len(batches)])
            seconds["the encoder alone"].append(time.perf_counter() - started)
            started = time.perf_counter()
            sum(
                1
                for _ in embed_all(
                    encoder, decode_all(((path, path.read_bytes) for path in files), encoder.preprocessing)
                )
            )
            seconds["read, decoded, embedded"].append(time.perf_counter() - started)
            database = SQLite(root / str(turn) / "diptych.db")
            database.migrate()
            kept = Originals(root / str(turn), "no", database)
            loaded = Loaded(encoder.model_id, encoder.embedding_dim, given.checkpoint)
            started = time.perf_counter()
            done = import_folder(root / "images", "default", database, kept, encoder, loaded, progress=False)
            seconds["imported"].append(time.perf_counter() - started)
            assert done.enrolled + len(done.refused) + done.held == len(files)
            database.close()
    medians = {name: float(np.median(each)) for name, each in seconds.items()}
    print(f"{len(files):,} images, medians of {TURNS}\n\n| | images/s | of the encoder alone |\n| --- | --- | --- |")
    for name, median in medians.items():
        print(f"| {name} | {len(files) / median:,.0f} | {medians['the encoder alone'] / median:.2f} |")


if __name__ == "__main__":
    main()

"""Omniglot's 20 official one-shot runs: which of 20 characters of one alphabet is it, from one drawing each?

    python -m benchmarks.one_shot CHECKPOINT omniglot_one_shot_runs/

400 trials; a test drawing is matched to the nearest training drawing (B. M. Lake, R. Salakhutdinov,
J. B. Tenenbaum, Science 350, 2015). 4.5 % is 18 errors, whose 95 % interval is 2.7 to 7.0 %.
"""

import sys
from pathlib import Path

import numpy as np

from app.checkpoint.matching import distances
from app.checkpoint.store import load_checkpoint
from training.embed import embed_folder, open_encoder


def one_shot(name_or_directory: str, runs: Path) -> dict[str, float]:
    """Error over all runs, as `errors`, `trials` and their quotient `error`."""
    encoder = open_encoder(load_checkpoint(name_or_directory))
    errors = trials = 0
    for run in sorted(runs.glob("run*")):
        paths, embeddings_ND, _ = embed_folder(encoder, run, progress=False)
        number = {f"{run.name}/{path}": index for index, path in enumerate(paths)}
        pairs = [line.split() for line in (run / "class_labels.txt").read_text().splitlines() if line.strip()]
        references = np.array([number[training] for _, training in pairs])
        for test, training in pairs:
            to_each = distances(embeddings_ND[number[test]], embeddings_ND[references])
            errors += references[int(to_each.argmin())] != number[training]
            trials += 1
    return {"errors": int(errors), "trials": trials, "error": errors / trials}


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m benchmarks.one_shot CHECKPOINT RUNS")
    found = one_shot(sys.argv[1], Path(sys.argv[2]))
    print(f"20-way one-shot, within an alphabet: {found['errors']} errors in {found['trials']} trials, "
          f"{100 * found['error']:.1f} %")  # fmt: skip

"""How many calibration identities does a promise of FMR 0.01 need? Random draws of five images each.

python -m benchmarks.support CHECKPOINT FOLDER
"""

import sys
from pathlib import Path

import numpy as np

from app.checkpoint.store import load_checkpoint
from training.calibration.pairs import count_pairs
from training.calibration.rates import is_supported, threshold_at_fmr
from training.data.dataset import read_dataset
from training.embed import embed_images, open_encoder

DRAWS = 200
IMAGES = 5
TARGET = 0.01


def main(name_or_directory: str, root: Path) -> None:
    encoder = open_encoder(load_checkpoint(name_or_directory))
    dataset = read_dataset(root, encoder.preprocessing)
    embeddings_ND = embed_images(encoder, dataset.images_NHWC)
    rng = np.random.default_rng(0)
    print("| calibration identities | draws that support FMR 0.01 |\n| --- | --- |")
    for identities in (15, 20, 25, 30, 40):
        supported = 0
        for _ in range(DRAWS):
            drawn = rng.choice(len(dataset.identities), identities, replace=False)
            some = np.concatenate(
                [rng.choice(np.flatnonzero(dataset.identity_N == one), IMAGES, replace=False) for one in drawn]
            )
            counts = count_pairs(embeddings_ND[some], dataset.identity_N[some], dataset.group_N[some])
            threshold = threshold_at_fmr(counts.fmr_G, TARGET)
            supported += threshold is not None and is_supported(counts, threshold)
        print(f"| {identities} | {supported / DRAWS:.0%} |")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m benchmarks.support CHECKPOINT FOLDER")
    main(sys.argv[1], Path(sys.argv[2]))

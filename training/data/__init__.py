"""A folder to batches of images: decoding, splits, lint, survey, augmentation."""

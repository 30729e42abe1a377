"""A folder to batches of images."""

"""Training: folder -> identities -> batches -> encoder -> loss -> checkpoint -> calibration -> report."""

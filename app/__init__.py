"""The service: bytes -> image -> embedding -> distance -> verdict."""

import os

# From 1.29 on, ONNX Runtime's Linux builds report each session to their maker, unless this variable is set before they
# are imported. Nothing that Diptych does leaves the machine, so it is set here, before any other import.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

"""The service: bytes -> image -> embedding -> distance -> verdict."""

import os

# From 1.29 on, ONNX Runtime's Linux builds report each session to their maker unless told not to before they are
# loaded. Nothing that Diptych does leaves the machine, so it tells them before anything of it can be imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

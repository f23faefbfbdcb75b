"""omni_ros: Qwen3-Omni on a robot, as six engines (see docs/architecture.md)."""

import os

# ONNX Runtime from 1.29 on reports to its makers: an id of this machine and a queue of events in the user's cache folder,
# look-ups of a collector's address. It decides when it is imported, which nothing here does before this line; the variable
# is an opt-out for the whole process, and no value that somebody else has set is meant to turn it on again.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

__version__ = "0.1.0"

import omni_ros  # noqa: F401 - before ONNX Runtime: its telemetry is off from here on

"""omni_ros: Qwen3-Omni on a robot, as six engines (see docs/architecture.md)."""

__version__ = "0.1.0"

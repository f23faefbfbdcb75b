"""Rotary settings of a config section, as transformers 4 wrote them and as transformers 5 does.

    transformers 4    "rope_theta": 1e6, "rope_scaling": {"type": "default", "mrope_section": [24, 20, 20], ...} or null
    transformers 5    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [24, 20, 20], ...}

A setting that is lost or misread here is heard, not seen, so what is missing or unknown is refused by name.
"""

from dataclasses import dataclass

from omni_ros.errors import CheckpointError

KNOWN = {"rope_theta", "rope_type", "type", "mrope_section", "interleaved", "mrope_interleaved", "partial_rotary_factor"}
FORMS = {"rope_theta", "rope_scaling", "rope_parameters"}


@dataclass(frozen=True)
class Rope:
    theta: float
    mrope_section: tuple[int, int, int]  # frequencies that turn with time, height, width


def read_rope(section: dict, where: str, kinds: tuple[str, ...] = ("default",), default_theta: float | None = None) -> Rope:
    """`where` names the section in errors; `kinds` are the rope types that the graph knows.

    Raises CheckpointError for a key that is unknown, two forms that disagree, a type not in `kinds`, or no rope_theta
    (unless transformers has a default for it: `default_theta`).
    """
    old, new = dict(section.get("rope_scaling") or {}), dict(section.get("rope_parameters") or {})
    if section.get("rope_theta") is not None:
        old.setdefault("rope_theta", section["rope_theta"])
    for key in sorted(old.keys() & new.keys()):
        if old[key] != new[key]:
            raise CheckpointError(f"{where}: {key} is {old[key]} in one place and {new[key]} in rope_parameters")
    rope = {**old, **new}
    strange = sorted(rope.keys() - KNOWN) + sorted(k for k in section if k.startswith("rope_") and k not in FORMS)
    if strange:
        raise CheckpointError(f"{where}: does not know the rope setting {', '.join(strange)}; it would change every position")
    kind = rope.get("rope_type", rope.get("type", kinds[0]))
    if kind not in kinds:
        raise CheckpointError(f"{where}: rope_type {kind} is not supported (only {', '.join(kinds)})")
    for key in ("interleaved", "mrope_interleaved"):
        if rope.get(key, True) is not True:
            raise CheckpointError(f"{where}: {key} = {rope[key]} is not supported")
    if (rope.get("partial_rotary_factor") or 1) != 1:
        raise CheckpointError(f"{where}: partial_rotary_factor = {rope['partial_rotary_factor']} is not supported")
    theta = rope.get("rope_theta", default_theta)
    if theta is None:
        raise CheckpointError(f"{where}: lacks rope_theta, in rope_parameters or beside rope_scaling")
    return Rope(float(theta), tuple(rope.get("mrope_section", (24, 20, 20))))

"""ROS's linters, as `colcon test` runs them; skipped where ament is absent. `make lint` is stricter and needs no ROS."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = [str(ROOT / name) for name in ("omni_ros", "offline", "launch", "examples")]
# Docstrings here are sentences that start on the first line and may go on; pydocstyle's rules for their layout differ.
OTHER_LAYOUT = ["D205", "D209", "D213", "D301", "D400", "D401", "D403", "D415"]
BY_AMENT = ["D100", "D101", "D102", "D103", "D104", "D105", "D106", "D107", "D203", "D212", "D404"]  # ament's own exceptions


def test_flake8():
    ament_flake8 = pytest.importorskip("ament_flake8.main", reason="ament_flake8 is part of a ROS installation")
    code, errors = ament_flake8.main_with_errors(argv=["--config", str(ROOT / ".flake8"), *FOLDERS])
    assert code == 0, "\n".join(errors)


def test_pep257():
    ament_pep257 = pytest.importorskip("ament_pep257.main", reason="ament_pep257 is part of a ROS installation")
    assert ament_pep257.main(argv=["--ignore", *BY_AMENT, *OTHER_LAYOUT, "--", *FOLDERS]) == 0

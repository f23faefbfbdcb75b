"""config/omni.yaml says what the node declares, and the node passes on what Request takes."""

from dataclasses import fields
from pathlib import Path

import yaml

from omni_ros.nodes import parameter_docs
from omni_ros.nodes.device_parameters import DEVICES
from omni_ros.nodes.parameters import GENERATION, TABLE
from omni_ros.pipeline.request import Request

CONFIG = Path(__file__).parent.parent / "config" / "omni.yaml"


def test_the_config_file_lists_every_parameter_with_its_default():
    configured = yaml.safe_load(CONFIG.read_text())["/**/omni"]["ros__parameters"]
    assert configured == {p.name: p.default for p in TABLE.values()}


def test_the_devices_file_lists_every_parameter_with_its_default():
    configured = yaml.safe_load((CONFIG.parent / "devices.yaml").read_text())
    assert {name: node["ros__parameters"] for name, node in configured.items()} == {
        f"/**/{node}": {p.name: p.default for p in rows} for node, rows in DEVICES.items()
    }


def test_the_config_file_marks_the_fixed_parameters():
    lines = [line.split("#", 1) for line in CONFIG.read_text().splitlines() if line.startswith("    ") and "#" in line]
    marked = {code.split(":")[0].strip(): "[fixed]" in comment for code, comment in lines if ":" in code}
    assert {name for name, fixed in marked.items() if fixed} == {p.name for p in TABLE.values() if p.fixed}


def test_the_generated_files_are_up_to_date():
    for path, text in parameter_docs.files().items():
        assert path.read_text() == text, f"{path.name}: run python -m omni_ros.nodes.parameter_docs"


def test_generation_parameters_are_those_of_a_request():
    defaults = {f.name: f.default for f in fields(Request)}
    # ROS parameters have no null: empty and -1 stand for it. A robot is watched for runaway models, a test's weights are not.
    unset = {"speaker": None, "seed": None, "runaway_limit": 0}
    assert set(defaults) == {p.name for p in GENERATION} | {"messages", "streaming", "special_tokens", "say", "tools"}
    for p in GENERATION:
        assert defaults[p.name] == unset.get(p.name, p.default), p.name

"""The operator's tools file: what it may say, what it makes of message definitions, and what is wrong with it."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from rcl_interfaces.msg import ParameterDescriptor, ParameterValue
from sensor_msgs.msg import CameraInfo, Imu
from test_msgs.action import Fibonacci

from omni_ros.dialogue.call_text import mismatch, validator
from omni_ros.dialogue.face import Face
from omni_ros.errors import InputError
from omni_ros.nodes import parameters
from omni_ros.nodes import tools as node_tools
from omni_ros.nodes.configured import Configured
from omni_ros.nodes.interface_types import interface_type
from omni_ros.nodes.message_schema import LONGEST_ARRAY, as_json, field_type, put, schema
from omni_ros.nodes.tools_file import arguments_schema, filler, read_tools_file

GOOD = {"tools": {"wave": {"description": "Wave.", "service": "wave", "type": "std_srvs/srv/Trigger"}}}


def written(tmp_path, content) -> str:
    path = tmp_path / "tools.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return str(path)


def test_the_example_in_the_configuration_folder(tmp_path):
    tools = read_tools_file("config/tools_example.yaml")
    assert {kind for entry in tools.values() for kind in ("service", "action", "topic") if kind in entry} == {"service", "topic"}
    for entry in tools.values():
        family = next(family for kind, family in node_tools.KINDS.items() if kind in entry)
        interface = interface_type(entry["type"], family)
        request = {"srv": lambda i: i.Request, "msg": lambda i: i}[family](interface)
        _, fields = arguments_schema(request, entry.get("arguments") or {})
        filler(request, fields, entry.get("values") or {})


WRONG = {
    "": "None is not of type 'object'",
    "tools: {": "cannot be read",
    "tools: {}": "should be non-empty",
    "tools: [wave]": "is not of type 'object'",
    "tools: {wave: {service: wave, type: a/srv/B}}": "'description' is a required property",
    "tools: {wave: {description: a, type: a/srv/B}}": "needs exactly one of service, action, topic",
    "tools: {wave: {description: a, type: a/srv/B, service: a, topic: b}}": "needs exactly one of",
    "tools: {wave: {description: a, type: a/srv/B, service: a, confrim: true}}": "'confrim' was unexpected",
    "tools: {wave: {description: a, type: a/srv/B, service: a, confirm: 1}}": "1 is not of type 'boolean'",
    "tools: {wave: {description: a, type: a/srv/B, service: a, timeout: 0}}": "less than or equal to the minimum of 0",
    'tools: {wave: {description: "a\\nb", type: a/srv/B, service: a}}': "does not match",
    "tools: {a b: {description: a, type: a/srv/B, service: a}}": "'a b' does not match",
    "tools: !!python/object/apply:os.system [ls]": "cannot be read",
}


@pytest.mark.parametrize("content", WRONG)
def test_files_that_are_wrong(tmp_path, content):
    path = written(tmp_path, content)
    with pytest.raises(InputError) as caught:
        read_tools_file(path)
    assert path in str(caught.value) and WRONG[content] in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_tools_file(str(tmp_path / "none.yaml"))


class Node:
    """As much of a node as tools are made of."""

    executor = None

    def __getattr__(self, name):
        return lambda *a, **k: SimpleNamespace(srv_name="x")


ENTRIES = {
    "type": ({"type": "std_srvs/srv/Trigerr"}, "tool wave: type std_srvs/srv/Trigerr is not installed"),
    "package": ({"type": "no_such_package/srv/Trigger"}, "install the package no_such_package"),
    "family": ({"type": "std_msgs/msg/Bool"}, "not of the form package/srv/Name"),
    "module": ({"type": "os.path/srv/System"}, "not of the form"),
    "field": ({"arguments": {"speed": {}}}, "std_srvs/Trigger_Request has no field 'speed'"),
    "value": ({"type": "std_srvs/srv/SetBool", "values": {"data": 3}}, "values: data: 3 is not of type 'boolean'"),
    "value's field": ({"values": {"data.x": 3}}, "has no field 'data'"),
    "inner field": ({"type": "std_srvs/srv/SetBool", "arguments": {"on": {"field": "data.x"}}}, "has no field 'x'"),
    "enum": ({"type": "std_srvs/srv/SetBool", "arguments": {"data": {"enum": ["on", "off"]}}}, "argument data: enum: 'on'"),
    "schema": ({"type": "std_srvs/srv/SetBool", "arguments": {"data": {"type": "truth"}}}, "arguments: this is no JSON schema"),
    "wait": ({"wait": False}, "wait: false is for actions"),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_tools_that_cannot_be_made(tmp_path, name):
    change, message = ENTRIES[name]
    path = written(tmp_path, {"tools": {"wave": {**GOOD["tools"]["wave"], **change}}})
    with pytest.raises(InputError) as caught:
        node_tools.RosTools(Node(), path)
    assert message in str(caught.value) and str(caught.value).startswith("tools_file: tool wave: ")


# ---- messages -------------------------------------------------------------------------------------------------------------
def test_schemas_of_fields():
    assert schema("uint8") == {"type": "integer", "minimum": 0, "maximum": 255}
    assert schema("int32") == {"type": "integer", "minimum": -(2**31), "maximum": 2**31 - 1}
    assert schema("string<10>") == {"type": "string", "maxLength": 10}
    assert schema("sequence<double, 3>") == {"type": "array", "items": {"type": "number"}, "maxItems": 3}
    assert schema("double[9]") == {"type": "array", "items": {"type": "number"}, "minItems": 9, "maxItems": 9}
    assert schema("sequence<string<5>, 2>")["items"] == {"type": "string", "maxLength": 5}
    vector = schema("geometry_msgs/Vector3")
    assert vector["properties"] == dict.fromkeys("xyz", {"type": "number"}) and vector["additionalProperties"] is False
    assert field_type(Imu, "header.stamp.sec") == "int32"
    assert field_type(ParameterDescriptor, "integer_range") == "sequence<rcl_interfaces/IntegerRange, 1>"
    for path in ("nothing", "header.nothing", "header.stamp.sec.x", "integer_range.x"):
        with pytest.raises(InputError, match="has no field"):
            field_type(ParameterDescriptor if path.startswith("integer") else Imu, path)


VALUES = [
    (Imu, "orientation", {"x": 1, "w": 0.5}),
    (Imu, "orientation.z", 3),
    (Imu, "orientation_covariance", [1] * 9),
    (Imu, "header.frame_id", "camera"),
    (Imu, "header", {"frame_id": "a", "stamp": {"sec": 1}}),
    (CameraInfo, "d", [1, 2.5]),
    (CameraInfo, "binning_x", 4.0),
    (ParameterValue, "byte_array_value", [1, 255]),
    (ParameterValue, "integer_array_value", [-1, 2]),
    (ParameterValue, "string_array_value", ["é", ""]),
    (ParameterValue, "bool_array_value", [True]),
    (ParameterDescriptor, "integer_range", [{"from_value": 1, "to_value": 3, "step": 1}]),
    (Fibonacci.Goal, "order", -5),
]


@pytest.mark.parametrize("kind,path,value", VALUES)
def test_values_that_fit_the_schema_fit_the_message(kind, path, value):
    """With rosidl's own checks on."""
    assert mismatch(validator(schema(field_type(kind, path))), value) == ""
    message = kind()
    put(message, path, value)
    found = as_json(message)
    for name in path.split("."):
        found = found[name]
    if isinstance(value, dict):
        assert {key: inner for key, inner in found.items() if key in value and not isinstance(inner, dict)} | {
            key: inner for key, inner in value.items() if isinstance(inner, dict)
        } == value
    elif path != "byte_array_value":
        assert found == value
    json.dumps(found, allow_nan=False)


WRONG_VALUES = [
    (Imu, "orientation_covariance", [1] * 8),
    (Imu, "orientation", {"x": 1, "speed": 3}),
    (CameraInfo, "binning_x", -1),
    (CameraInfo, "binning_x", 2**32),
    (ParameterDescriptor, "integer_range", [{}, {}]),
    (Fibonacci.Goal, "order", "5"),
    (Imu, "orientation", 3),
]


@pytest.mark.parametrize("kind,path,value", WRONG_VALUES)
def test_values_that_do_not(kind, path, value):
    """If an operator's own schema lets them through, the message does not."""
    assert mismatch(validator(schema(field_type(kind, path))), value)
    with pytest.raises(InputError, match=path):
        put(kind(), path, value)


def test_results_are_short_and_always_json():
    message = CameraInfo(d=[float("nan"), float("inf"), *range(1000)])
    shown = as_json(message)["d"]
    assert len(shown) == LONGEST_ARRAY + 1 and shown[-1] == "... 1002 in all" and shown[:2] == ["nan", "inf"]
    json.dumps(as_json(message), allow_nan=False)
    assert as_json(Imu())["orientation_covariance"] == np.zeros(9).tolist()


def test_the_schema_of_arguments():
    kind = interface_type("diagnostic_msgs/srv/AddDiagnostics", "srv").Request
    given = {"place": {"field": "load_namespace", "enum": ["left"], "description": "where"}, "load_namespace": {"optional": True}}
    made, fields = arguments_schema(kind, given)
    assert made == {
        "type": "object",
        "properties": {
            "place": {"type": "string", "enum": ["left"], "description": "where"},
            "load_namespace": {"type": "string"},
        },
        "required": ["place"],
    }
    assert fields == {"place": "load_namespace", "load_namespace": "load_namespace"}
    assert filler(kind, fields, {"load_namespace": "x"})({}).load_namespace == "x"
    assert filler(kind, fields, {"load_namespace": "x"})({"place": "left"}).load_namespace == "left"
    assert arguments_schema(kind, {})[0] == {"type": "object", "properties": {}}


def test_an_operators_schema_cannot_widen_what_a_field_takes():
    """Also where rosidl does not check."""
    kind = interface_type("test_msgs/action/Fibonacci", "action").Goal
    made, fields = arguments_schema(kind, {"order": {"type": "string"}})
    assert mismatch(validator(made), {"order": "5"}) == ""
    with pytest.raises(InputError, match="order: '5' is not of type 'integer'"):
        filler(kind, fields, {})({"order": "5"})


def test_a_float_that_only_a_double_can_hold():
    kind = interface_type("sensor_msgs/msg/ChannelFloat32", "msg")
    for value, fits in (([3e38], True), ([1e39], False), ([-1e300], False)):
        if fits:
            put(kind(), "values", value)
        else:
            with pytest.raises(InputError, match="too large"):
                put(kind(), "values", value)


def test_where_nobody_can_act_a_tools_file_is_not_ignored():
    """As in a replay."""
    defaults = {name: parameter.default for name, parameter in parameters.TABLE.items()}
    values = {**defaults, "engine_dir": "engines", "vad": "energy", "tools_file": "tools.yaml"}
    node = SimpleNamespace(get_parameter=lambda name: SimpleNamespace(value=values[name]))
    with pytest.raises(InputError, match="no robot here that could act"):
        Configured(node, Face())

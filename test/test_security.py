"""config/sros2_policy.xml names exactly what the running node uses, and a node that is to be secured never runs unsecured."""
# ruff: noqa: F811 - fixtures are imported, and named again where they are used

import os
import subprocess
import sys
from xml.etree import ElementTree

import pytest
from omni_process import ROOT, OmniProcess, engine_dir, omni, ros, running, wait  # noqa: F401 - some are fixtures

POLICY = ElementTree.parse(ROOT / "config" / "sros2_policy.xml").getroot()


def allowed(node: str, kind: str, what: str) -> set[str]:
    """Full names that a profile of the policy allows, in namespace /."""
    (profile,) = POLICY.findall(f".//profile[@node='{node}']")
    names = [entry.text for group in profile.findall(f"{kind}s[@{what}='ALLOW']") for entry in group.findall(kind)]
    assert len(names) == len(set(names))
    return {name.replace("~", f"/{node}") if name[0] in "~/" else f"/{name}" for name in names}


OPTIONAL = {
    "/clock",
    "/audio_info",
    "/bond",
    "/image_raw/compressed",
    "/points",
}  # of simulated time, of message packages, of a parameter


def test_the_policy_of_the_node_is_what_the_node_uses(omni):
    def used(find) -> set[str]:
        return {name for name, _ in find("omni", "/")}

    node = omni.node
    wait(lambda: "/omni/get_parameters" in used(node.get_service_names_and_types_by_node), 30)
    assert used(node.get_publisher_names_and_types_by_node) | {"/bond"} == allowed("omni", "topic", "publish")
    assert used(node.get_subscriber_names_and_types_by_node) | OPTIONAL == allowed("omni", "topic", "subscribe")
    services = used(node.get_service_names_and_types_by_node)
    assert services == allowed("omni", "service", "reply") - {"/omni/get_type_description"} | services & {
        "/omni/get_type_description"  # where rclpy has it
    }


@pytest.mark.parametrize("name", ["microphone", "speaker"])
def test_the_policy_of_a_device_is_what_its_node_uses(omni, tmp_path, name):
    def used(find) -> set[str]:
        return {topic for topic, _ in find(name, "/")}

    parameters = {"device": "null"} | ({"echo": "mute"} if name == "microphone" else {})
    process = OmniProcess(tmp_path / "log", module=f"omni_ros.nodes.{name}_node", **parameters)
    node = omni.node
    try:
        topic = {"microphone": "/audio", "speaker": "/speech_played"}[name]
        wait(lambda: (name, "/") in node.get_node_names_and_namespaces(), 20)
        wait(lambda: topic in used(node.get_publisher_names_and_types_by_node), 20)
        wait(lambda: f"/{name}/get_parameters" in used(node.get_service_names_and_types_by_node), 30)
        subscribed = allowed(name, "topic", "subscribe")
        wait(lambda: used(node.get_subscriber_names_and_types_by_node) | {"/clock", "/bond"} == subscribed, 30)
        assert used(node.get_publisher_names_and_types_by_node) | {"/bond"} == allowed(name, "topic", "publish")
        optional = {f"/{name}/get_type_description"}  # where rclpy has it
        assert used(node.get_service_names_and_types_by_node) | optional == allowed(name, "service", "reply")
    finally:
        process.stop()


def test_people_may_talk_and_stop_and_nothing_else():
    assert allowed("people", "service", "request") == {"/omni/cancel", "/omni/reset"}
    system = {"/parameter_events", "/rosout"}
    people, robot = (allowed(who, "topic", "publish") - system for who in ("people", "robot"))
    assert people | robot == allowed("omni", "topic", "subscribe") - {"/clock", "/bond"} and not people & robot
    assert not allowed("operator", "topic", "publish") - system


def test_the_policies_ask_for_nothing_that_the_node_does_not_offer():
    for who in ("people", "robot", "operator"):
        offered = [allowed(name, "service", "reply") for name in ("omni", "microphone", "speaker")]
        assert allowed(who, "service", "request") <= set().union(*offered)


@pytest.mark.skipif(bool(os.environ.get("ROS_DISTRO")), reason="a ROS installation may have the security plugins")
def test_without_the_security_plugins_an_enforced_node_does_not_start(engine_dir, tmp_path):
    """PyPI's wheels have none."""
    enclave = tmp_path / "enclaves" / "omni"
    enclave.mkdir(parents=True)
    names = ("identity_ca.cert.pem", "cert.pem", "key.pem", "permissions_ca.cert.pem", "governance.p7s", "permissions.p7s")
    for name in names:
        (enclave / name).write_text("")
    security = {"ROS_SECURITY_ENABLE": "true", "ROS_SECURITY_STRATEGY": "Enforce", "ROS_SECURITY_KEYSTORE": str(tmp_path)}
    command = [
        sys.executable,
        "-m",
        "omni_ros.nodes.omni_node",
        "--ros-args",
        "--enclave",
        "/omni",
        "-p",
        f"engine_dir:={engine_dir}",
    ]
    done = subprocess.run(command, env={**os.environ, **security}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "security" in done.stderr

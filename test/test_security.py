"""config/sros2_policy.xml names exactly what the running node uses, and a node that is to be secured never runs unsecured."""
# ruff: noqa: F811 - fixtures are imported, and named again where they are used

import os
import subprocess
import sys
from xml.etree import ElementTree

import pytest
from omni_process import ROOT, engine_dir, omni, ros, running, wait  # noqa: F401 - some are fixtures

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
    "/image_raw/compressed",
    "/points",
}  # of simulated time, of a message package, of a parameter


def test_the_policy_of_the_node_is_what_the_node_uses(omni):
    def used(find) -> set[str]:
        return {name for name, _ in find("omni", "/")}

    node = omni.node
    wait(lambda: "/omni/get_parameters" in used(node.get_service_names_and_types_by_node), 10)
    assert used(node.get_publisher_names_and_types_by_node) == allowed("omni", "topic", "publish")
    assert used(node.get_subscriber_names_and_types_by_node) | OPTIONAL == allowed("omni", "topic", "subscribe")
    services = used(node.get_service_names_and_types_by_node)
    assert services == allowed("omni", "service", "reply") - {"/omni/get_type_description"} | services & {
        "/omni/get_type_description"  # where rclpy has it
    }


def test_people_may_talk_and_stop_and_nothing_else():
    assert allowed("people", "service", "request") == {"/omni/cancel", "/omni/reset"}
    system = {"/parameter_events", "/rosout"}
    people, robot = (allowed(who, "topic", "publish") - system for who in ("people", "robot"))
    assert people | robot == allowed("omni", "topic", "subscribe") - {"/clock"} and not people & robot
    assert not allowed("operator", "topic", "publish") - system


def test_the_policies_ask_for_nothing_that_the_node_does_not_offer():
    for who in ("people", "robot", "operator"):
        assert allowed(who, "service", "request") <= allowed("omni", "service", "reply")


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

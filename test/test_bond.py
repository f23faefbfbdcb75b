"""The bond to a lifecycle manager. Package bond is on no Python index: messages have its fields, and are handed over here."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from rclpy.node import Node
from std_msgs.msg import Header

from omni_ros.nodes import bond
from omni_ros.nodes.bond import Bond


@dataclass
class Status:
    """bond/msg/Status."""

    id: str = ""
    instance_id: str = ""
    active: bool = False
    heartbeat_timeout: float = 0.0
    heartbeat_period: float = 0.0
    header: Header = field(default_factory=Header)


class Wires:
    """What a node makes, and a manager at its other end that follows the protocol: formed by the first sign of life, broken by a
    sign of death or by silence."""

    def __init__(self, name: str = "omni") -> None:
        self.name = name
        self.sent: list[tuple[float, Status]] = []
        self.now = 0.0
        self.timers: list[tuple[float, object]] = []
        self.heard = None

    def get_name(self) -> str:
        return self.name

    def create_publisher(self, kind, topic, depth):
        assert (kind, topic) == (Status, "bond")
        return SimpleNamespace(publish=lambda msg: self.sent.append((self.now, msg)))

    def create_subscription(self, kind, topic, callback, depth):
        assert (kind, topic) == (Status, "bond")
        self.heard = callback

    def create_timer(self, period, callback, clock):
        self.timers.append((period, callback))
        return self.timers[-1]

    def destroy_timer(self, timer) -> None:
        self.timers.remove(timer)

    def destroy_publisher(self, publisher) -> None:
        self.gone = True

    def destroy_subscription(self, subscription) -> None:
        self.heard = None

    def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.1)):
            self.now += 0.1
            for period, callback in list(self.timers):
                assert period == 0.1
                callback()

    def manager(self, timeout: float = 4.0) -> str:
        """What it thinks of the bond now."""
        own = [(at, msg) for at, msg in self.sent if msg.id == self.name and msg.instance_id != "manager"]
        if not own:
            return "waiting"
        dead = not own[-1][1].active or self.now - own[-1][0] > timeout
        return "broken" if dead else "formed"


@pytest.fixture
def wires(monkeypatch) -> Wires:
    monkeypatch.setattr(bond, "message_class", {"bond/msg/Status": Status}.get)
    return Wires()


def test_it_lives_from_activation_to_deactivation(wires):
    held = Bond(wires)
    assert wires.manager() == "waiting"
    wires.pass_time(10.0)
    assert wires.manager() == "formed" and len({msg.instance_id for _, msg in wires.sent}) == 1
    held.close()
    assert wires.manager() == "broken" and wires.timers == [] and wires.gone
    held.close()
    again = Bond(wires)  # active again: another instance
    wires.pass_time(0.2)
    assert wires.manager() == "formed" and len({msg.instance_id for _, msg in wires.sent}) == 2
    again.close()


def test_a_node_that_is_stuck_or_killed_is_noticed(wires):
    Bond(wires)
    wires.pass_time(1.0)
    wires.timers.clear()  # nothing runs in it any more
    wires.pass_time(3.9)
    assert wires.manager() == "formed"
    wires.pass_time(0.2)
    assert wires.manager() == "broken"


def test_a_manager_that_lets_go_is_answered_and_others_are_not(wires):
    held = Bond(wires)
    wires.pass_time(0.3)
    own = wires.sent[0][1].instance_id
    wires.heard(Status(id="controller_server", instance_id="manager", active=False))
    wires.heard(Status(id="omni", instance_id="manager", active=True))
    wires.heard(Status(id="omni", instance_id=own, active=False))  # its own words
    wires.pass_time(20.0)  # and silence is not minded
    assert wires.manager() == "formed"
    wires.heard(Status(id="omni", instance_id="manager", active=False))
    said = len(wires.sent)
    assert wires.manager() == "broken"
    wires.pass_time(1.0)
    held.close()
    assert len(wires.sent) == said


def test_without_the_package_nothing_is_made():
    held = Bond(SimpleNamespace())
    held.close()


@pytest.mark.parametrize("state", ["microphone", "speaker", "omni"])
def test_each_node_holds_one_while_it_is_active(state, monkeypatch):
    """The nodes themselves, with a bond that writes down what happens."""
    from rclpy import init, shutdown
    from rclpy.parameter import Parameter

    from omni_ros.nodes import device_node, omni_node
    from omni_ros.nodes.microphone_node import MicrophoneNode
    from omni_ros.nodes.omni_node import OmniNode
    from omni_ros.nodes.speaker_node import SpeakerNode

    log: list[str] = []

    class Noted:
        def __init__(self, node: Node) -> None:
            log.append("begins")

        def close(self) -> None:
            log.append("ends")

    monkeypatch.setattr(device_node, "Bond", Noted)
    monkeypatch.setattr(omni_node, "Bond", Noted)
    init()
    node = {"microphone": MicrophoneNode, "speaker": SpeakerNode, "omni": OmniNode}[state]()
    try:
        if state == "omni":
            monkeypatch.setattr(OmniNode, "_configure", lambda self: None)
            monkeypatch.setattr(OmniNode, "_activate", lambda self: None)
        else:
            node.set_parameters([Parameter("device", value="null")])
        node.trigger_configure()
        assert log == []
        node.trigger_activate()
        assert log == ["begins"]
        node.trigger_deactivate()
        assert log == ["begins", "ends"]
        node.trigger_activate()
        node.on_shutdown(None)
        assert log == ["begins", "ends"] * 2
    finally:
        node.destroy_node()
        shutdown()

"""The model acts over DDS: the trained model in one process, what the robot offers in another, and a user in a third."""

import omni_process  # noqa: F401 - a DDS domain of our own, before rclpy is loaded

# isort: split
import json
import shutil
import subprocess
import sys
import time
import wave
from pathlib import Path

import numpy as np
import pytest
import yaml
from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import Transition
from omni_process import Client, OmniProcess, ros, wait  # noqa: F401
from std_msgs.msg import String
from std_srvs.srv import Trigger

from omni_ros.dialogue.resample import Resampler

TRIGGER, BOOL, COUNT = "std_srvs/srv/Trigger", "std_msgs/msg/Bool", "test_msgs/action/Fibonacci"
ADD = "diagnostic_msgs/srv/AddDiagnostics"
PLACE = {"place": {"field": "load_namespace", "enum": ["left", "middle", "right"]}}
# The two that the demo model knows, and what a Thinker that is told what to write may try.
KNOWN = {
    "wave": {"description": "Wave a hand.", "service": "wave", "type": TRIGGER},
    "go_to": {
        "description": "Go to a place.",
        "service": "go_to",
        "type": "diagnostic_msgs/srv/AddDiagnostics",
        "arguments": PLACE,
    },
}
TRIED = KNOWN | {
    "says_no": {"description": "x", "service": "fail", "type": TRIGGER},
    "nobody_there": {"description": "x", "service": "nowhere", "type": TRIGGER},
    "nobody_listens": {"description": "x", "topic": "nowhere", "type": BOOL},
    "too_slow": {"description": "x", "service": "slow", "type": TRIGGER, "timeout": 1.0},
    "never_ends": {"description": "x", "action": "count", "type": COUNT, "values": {"order": -1}, "timeout": 1.0},
    "light": {"description": "x", "topic": "light", "type": BOOL, "arguments": {"on": {"field": "data"}}},
    "count": {"description": "x", "action": "count", "type": COUNT, "arguments": {"order": {"maximum": 9}}},
    "begin": {"description": "x", "action": "count", "type": COUNT, "values": {"order": 20}, "wait": False},
    "drive": {"description": "x", "action": "count", "type": COUNT, "values": {"order": -1}},
    "leave": {"description": "x", "service": "leave", "type": TRIGGER, "timeout": 30.0},
}
# What is called, how it ends, what the model reads of it, what the robot was asked for.
CASES = [
    ("wave", {}, "done", '{"message": "", "success": true}', ["wave", {}]),
    ("says_no", {}, "failed", '{"message": "", "success": false}', ["fail", {}]),
    ("nobody_there", {}, "failed", "not available: nobody offers the service /nowhere", None),
    ("nobody_listens", {}, "failed", "not available: nobody listens to the topic /nowhere", None),
    ("too_slow", {}, "timeout", "timeout after 1 s", ["slow", {}]),
    ("never_ends", {}, "timeout", "timeout after 1 s", ["count", {"order": -1}]),
    ("light", {"on": True}, "done", '{"success": true}', ["light", {"data": True}]),
    ("count", {"order": 3}, "done", '{"sequence": [1, 1, 2]}', ["count", {"order": 3}]),
    ("begin", {}, "done", '{"accepted": true}', ["count", {"order": 20}]),
    ("count", {"order": 10}, "refused", "10 is greater than the maximum of 9", None),
    ("go_to", {"place": "up"}, "refused", "'up' is not one of", None),
    ("reboot", {}, "refused", "there is no tool 'reboot'", None),
    ("leave", {}, "failed", "is gone", ["leave", {}]),
]


def call(name: str, arguments: dict) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def tools_file(folder: Path, tools: dict) -> Path:
    path = folder / "tools.yaml"
    path.write_text(yaml.safe_dump({"tools": tools}))
    return path


class ToolServer:
    """test/tool_server.py and its log."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.process = subprocess.Popen([sys.executable, str(Path(__file__).with_name("tool_server.py")), str(log)])
        wait(lambda: log.exists() and log.stat().st_size == 0, 20)

    def calls(self) -> list[list]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def stop(self) -> None:
        self.process.kill()
        self.process.wait(10)


class Scene:
    """Node, robot and user."""

    def __init__(self, folder: Path, engine_dir: Path, replies: list[str] | None = None, **parameters) -> None:
        """With `replies` the Thinker writes these."""
        module = "omni_ros.nodes.omni_node" if replies is None else "forced_node"
        env = {"FORCED": json.dumps(replies)}
        path = tools_file(folder, KNOWN if replies is None else TRIED)
        parameters = {"tools_file": path, "temperature": 0.0, "talker_temperature": 0.0, **parameters}
        parameters["history_turns"] = 0  # the demo model was not trained on turns that follow a call
        self.server = ToolServer(folder / "calls")
        self.omni = OmniProcess(folder / "log", module=module, env=env, engine_dir=engine_dir, vad="energy", **parameters)
        self.client = Client()
        self.json: list[str] = []
        self.client.node.create_subscription(String, "response_json", lambda msg: self.json.append(msg.data), 10)

    def __enter__(self) -> "Scene":
        wait(lambda: self.client.state == "idle" and self.client.connected, 40)
        time.sleep(2.0)  # the node and the robot's servers know each other, which nobody else can see
        return self

    def __exit__(self, *_) -> None:
        self.omni.stop()
        self.server.stop()
        self.client.close()

    def say(self, text: str) -> str:
        """A typed turn: the answer, once it was heard."""
        count = len(self.client.received["response"])
        self.client.prompt.publish(String(data=text))
        wait(lambda: len(self.client.received["response"]) > count, 30)
        wait(lambda: self.client.state == "idle", 30)
        return self.client.texts("response")[-1]

    def no_call_was_heard_or_read(self) -> None:
        words = "".join(self.client.texts("response_stream")) + "".join(self.client.texts("response"))
        for mark in ("tool_call", "arguments", "{", "<"):
            assert mark not in words


def test_asked_in_words_the_robot_acts_once_and_says_so(ros, demo_engine_dir, tmp_path):  # noqa: F811
    with Scene(tmp_path, demo_engine_dir) as scene:
        assert scene.say("Wave.") == "I waved."
        assert scene.server.calls() == [["wave", {}]]
        spoken = scene.client.samples() / 24000
        assert 0.5 < spoken < 4.0  # two words
        assert scene.say("go to the left") == "I am on the left."
        assert scene.server.calls() == [["wave", {}], ["go_to", {"place": "left"}]]
        assert scene.say("What is your name?") == "My name is Omni."
        assert len(scene.server.calls()) == 2
        scene.no_call_was_heard_or_read()
        assert "".join(scene.client.texts("response_stream")) == "".join(scene.client.texts("response"))
        values = scene.client.values()
        assert values["tool calls done"] == "2" and "tool calls refused" not in values
        # A turn finds the tools in the KV cache.
        assert int(values["pipeline reused_tokens"]) > 0.7 * int(values["pipeline prompt_tokens"])


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="nobody can speak here: espeak-ng is not installed")
def test_asked_aloud(ros, demo_engine_dir, tmp_path):  # noqa: F811
    with Scene(tmp_path, demo_engine_dir) as scene:
        for words, asked, answer in (
            ("please wave", ["wave", {}], "I waved."),
            ("go to the left", ["go_to", {"place": "left"}], "I am on the left."),
        ):
            file = tmp_path / "words.wav"
            subprocess.run(["espeak-ng", "-v", "en-us", "-s", "140", "-w", str(file), words], check=True)
            with wave.open(str(file)) as wav:
                pcm, rate = np.frombuffer(wav.readframes(wav.getnframes()), np.int16), wav.getframerate()
            quiet = np.zeros(rate, np.float32)
            pcm = Resampler(rate)(np.concatenate([quiet, pcm.astype(np.float32) / 32768, quiet, quiet]))
            count = len(scene.client.received["response"])
            scene.client.speak((np.clip(pcm, -1, 1) * 32767).astype(np.int16))
            wait(lambda: len(scene.client.received["response"]) > count, 30)  # noqa: B023
            wait(lambda: scene.client.state == "idle", 30)
            assert scene.client.texts("response")[-1] == answer
            assert scene.server.calls()[-1] == asked
        assert len(scene.server.calls()) == 2
        scene.no_call_was_heard_or_read()


def test_what_becomes_of_calls(ros, demo_engine_dir, tmp_path):  # noqa: F811
    """Real engines with a Thinker that writes what it is told, one token after another, through the whole node."""
    replies = [reply for name, arguments, *_ in CASES for reply in (f"Well. {call(name, arguments)}", "So.")]
    with Scene(tmp_path, demo_engine_dir, replies, audio_output=False) as scene:
        counts: dict[str, int] = {}
        for name, _, ended, result, asked in CASES:
            before = len(scene.server.calls())
            started = time.monotonic()
            assert scene.say("do it") == "Well. So."
            assert time.monotonic() - started < 10
            counts[ended] = counts.get(ended, 0) + 1
            status = scene.client.status()
            values = {pair.key: pair.value for pair in status.values}
            assert {how: int(values.get(f"tool calls {how}", 0)) for how in counts} == counts, name
            if ended == "done":
                assert result in scene.omni.log.read_text()
            else:
                assert status.level == DiagnosticStatus.WARN
                message = status.message.replace("\\", "")
                assert message.startswith(f"tools: tool {name}(") and result in message
            if name == "never_ends":
                wait(lambda: scene.server.calls()[-1] == ["cancelled", {}], 5)
            if asked is not None:  # what is only published arrives when it arrives
                wait(lambda: len(scene.server.calls()) > before, 5)  # noqa: B023
            assert scene.server.calls()[before:][:1] == [asked] * (asked is not None)
        assert sum(name == "cancelled" for name, _ in scene.server.calls()) == 1  # what was only begun goes on
        scene.no_call_was_heard_or_read()


def test_stopped_while_an_action_runs(ros, demo_engine_dir, tmp_path):  # noqa: F811
    replies = [reply for _ in range(4) for reply in (call("drive", {}), call("wave", {}), "I waved.")]
    with Scene(tmp_path, demo_engine_dir, replies, audio_output=False) as scene:
        for number, how in enumerate(("cancel", "reset", "deactivate")):
            before = len(scene.server.calls())
            scene.client.prompt.publish(String(data="drive on"))
            wait(lambda: len(scene.server.calls()) > before, 20)  # noqa: B023
            if how == "deactivate":
                assert scene.client.change(Transition.TRANSITION_DEACTIVATE)
            else:
                assert scene.client.call(Trigger, f"omni/{how}").success
            wait(lambda: scene.server.calls()[-1] == ["cancelled", {}], 5)
            if how == "deactivate":
                assert scene.client.change(Transition.TRANSITION_ACTIVATE)
                wait(lambda: scene.client.prompt.get_subscription_count(), 5)
            wait(lambda: scene.client.state == "idle", 5)
            assert scene.say("wave") == "I waved."
            assert scene.server.calls()[before:] == [["count", {"order": -1}], ["cancelled", {}], ["wave", {}]]
            assert scene.client.values()["tool calls cancelled"] == str(number + 1)
        scene.client.prompt.publish(String(data="drive on"))
        wait(lambda: scene.server.calls()[-1][0] == "count", 20)
        time.sleep(1.0)  # the goal is accepted, and the node knows it: before that it cannot be cancelled
        assert scene.omni.stop()[0] == 0  # a robot does not drive on when nobody is left who could stop it
        wait(lambda: scene.server.calls()[-1] == ["cancelled", {}], 5)


def test_only_json_that_fits_is_published(ros, demo_engine_dir, tmp_path):  # noqa: F811
    (tmp_path / "schema.json").write_text('{"type": "object", "properties": {"done": {"type": "boolean"}}, "required": ["done"]}')
    replies = ['{"done": true}', '{"done": 1}', '{"done": tr', "Sure.", call("wave", {}), '{"done": false} ']
    with Scene(tmp_path, demo_engine_dir, replies, audio_output=False, response_schema=tmp_path / "schema.json") as scene:
        for reply in replies[:4]:
            assert scene.say("go on") == reply
        status = scene.client.status()
        assert status.level == DiagnosticStatus.WARN and "response_json: the answer is not JSON" in status.message
        scene.say("go on")
        wait(lambda: len(scene.json) == 2, 5)
        assert [json.loads(text) for text in scene.json] == [{"done": True}, {"done": False}]


def test_a_tools_file_that_cannot_be_used_keeps_the_node_unconfigured(ros, demo_engine_dir, tmp_path):  # noqa: F811
    path = tools_file(tmp_path, {"wave": {**KNOWN["wave"], "type": "std_srvs/srv/Wave"}})
    omni = OmniProcess(tmp_path / "log", engine_dir=demo_engine_dir, vad="energy", tools_file=path)
    assert omni.process.wait(30) == 1
    assert "tool wave: type std_srvs/srv/Wave is not installed" in omni.log.read_text()

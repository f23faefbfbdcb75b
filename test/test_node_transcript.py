"""Topic `transcript` over real DDS, and hri_msgs/LiveSpeech."""
# ruff: noqa: F811 - fixtures are imported, and named again where they are used

from types import SimpleNamespace

from omni_process import answer, engine_dir, omni, question, ros, running, wait  # noqa: F401 - some are fixtures
from std_msgs.msg import Header, String

from omni_ros.nodes import live_speech


def test_what_was_said_is_written_down_where_it_is_wanted(omni):
    texts: list[str] = []
    subscription = omni.node.create_subscription(String, "transcript", lambda msg: texts.append(msg.data), 10)
    wait(lambda: omni.node.count_publishers("transcript"), 10)
    omni.speak(question())
    answer(omni)
    omni.set(transcript=True)
    omni.prompt.publish(String(data="typed"))
    answer(omni, 2)
    assert texts == []
    omni.speak(question())
    answer(omni, 3)
    wait(lambda: texts, 20)
    omni.set(transcript=False)
    omni.prompt.publish(String(data="And you?"))
    answer(omni, 4)
    assert len(texts) == 1 and texts[0].strip() and len(omni.received["response"]) == 4
    omni.node.destroy_subscription(subscription)


def test_live_speech_where_hri_msgs_is_installed(ros, omni, monkeypatch):
    """Its fields, as REP-155 has them; the package itself is on no index of Python packages."""

    class LiveSpeech:
        def __init__(self, final: str) -> None:
            self.header, self.incremental, self.final, self.confidence, self.locale = Header(), "", final, 0.0, ""

    published: list[LiveSpeech] = []
    monkeypatch.setattr(live_speech, "message_class", {"hri_msgs/msg/LiveSpeech": LiveSpeech}.get)
    node = SimpleNamespace(
        create_publisher=lambda kind, topic, qos: SimpleNamespace(publish=published.append),
        get_clock=omni.node.get_clock,
    )
    live_speech.live_speech(node)("hello")
    assert published[0].final == "hello" and published[0].header.stamp.sec > 0


def test_without_hri_msgs_nothing_is_published():
    assert live_speech.live_speech(SimpleNamespace())("hello") is None

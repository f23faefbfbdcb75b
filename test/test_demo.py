"""The demo's parts: its bag, its judgement and its report. test_node_demo_model.py has the node and the model."""

import io
import json
import os
import subprocess
import sys
import wave
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from dds_domain import own_domain
from PIL import Image

from demo import outcome, run, table
from demo.check import unheard, uninterrupted, wrong
from demo.make_bag import make_bag, microphone, picture, read_mono
from demo.report import write_report
from demo.script import TURNS

ROOT = Path(__file__).parent.parent
QUESTION = read_mono(TURNS[0].sound)
COUNT, SQUARES = TURNS[3], TURNS[4]


def spoken(begin: float, seconds: float) -> list[tuple[float, np.ndarray]]:
    """Speech as it arrives: 60 ms of a tone at a time."""
    tone = (8000 * np.sin(np.arange(1440) * 0.05)).astype(np.int16)
    return [(begin + 0.06 * i, tone) for i in range(round(seconds / 0.06))]


def conversation(**changes) -> SimpleNamespace:
    """What the recorder has of counting that is interrupted 3 s after it was asked for."""
    seen = {
        "microphone": [(0.02 * i, QUESTION[320 * i : 320 * (i + 1)]) for i in range(QUESTION.size // 320)],
        "pictures": [(0.1 * i, table.jpeg(table.draw([(COUNT.scene, (0, 0))]))) for i in range(100)],
        "user_speaking": [(1.0, True), (2.0, False), (5.0, True), (7.0, False)],
        "deltas": [(2.3, "One, two,"), (7.2, "I see two squares.")],
        "answers": [(2.6, COUNT.answer), (7.3, SQUARES.answer)],
        "speech": spoken(2.6, 2.4) + spoken(7.3, 1.8),
        "remembered": [(1.5, "It is on the right."), (5.4, "One, two, three,—"), (9.2, SQUARES.answer)],
    }
    return SimpleNamespace(**{**seen, **changes})


def judged(recorder: SimpleNamespace) -> list[str]:
    answers, turns = outcome.answers(recorder), (COUNT, SQUARES)
    return wrong(turns, answers) + uninterrupted(turns, answers, outcome.interruptions(recorder))


def test_right_answers_and_an_interruption_pass():
    recorder = conversation()
    assert judged(recorder) == []
    (found,) = outcome.interruptions(recorder)
    assert found.remembered == "One, two, three,—"
    assert found.spoken == pytest.approx(2.4) and found.last_sample < found.at == 5.0


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"answers": [(2.6, COUNT.answer), (7.3, "I see one square.")]}, "right is 'I see two squares.'"),
        ({"answers": [(2.6, COUNT.answer)]}, "question 2 got no answer"),
        ({"speech": spoken(2.6, 2.4)}, "answer 2 of 4 words was spoken in 0.00 s"),
        ({"speech": spoken(2.6, 2.4) + [(at, 0 * pcm) for at, pcm in spoken(7.3, 1.8)]}, "answer 2 is silent"),
        ({"speech": spoken(2.6, 3.5) + spoken(7.3, 1.8)}, "speech went on for 1.02 s"),
        ({"speech": spoken(2.6, 1.0) + spoken(7.3, 1.8)}, "1 answers were to be interrupted while they were spoken, 0 were"),
        ({"remembered": [(5.4, COUNT.answer)]}, "'' is remembered"),
        ({"remembered": [(5.4, "One, three,—")]}, "'One, three,—' is remembered"),
        ({"remembered": [(5.4, COUNT.answer + "—")]}, "is remembered"),
    ],
)
def test_what_goes_wrong_fails_the_demo(changes, problem):
    (found,) = judged(conversation(**changes))
    assert problem in found


def test_the_report_shows_the_conversation(tmp_path):
    recorder = conversation()
    answers, interruptions = outcome.answers(recorder), outcome.interruptions(recorder)
    write_report(recorder, tmp_path, (COUNT, SQUARES), answers, interruptions, {"judged": True})
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert [turn["answer"] for turn in metrics["turns"]] == [COUNT.answer, SQUARES.answer]
    assert metrics["turns"][0]["first_text_ms"] == 300.0 and metrics["turns"][0]["first_speech_ms"] == 600.0
    assert metrics["interruptions"][0]["remembered"] == "One, two, three,—"
    with wave.open(str(tmp_path / "speech.wav")) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (24000, 1, 2)
        assert file.getnframes() == pytest.approx(24000 * (7.3 + 1.8 - 2.6), abs=2)
    with Image.open(tmp_path / "timeline.png") as plot:
        assert plot.width > 1000
        colours = np.asarray(plot.convert("RGB")).reshape(-1, 3)
    for rgb in (table.COLOURS["orange"], (255, 127, 14)):  # the circle of the thumbnails, and the speech
        assert (np.abs(colours - rgb).max(axis=1) < 8).sum() > 100


def test_the_camera_shows_each_scene_when_it_is_asked_about():
    pcm, begins = microphone(TURNS)
    assert pcm.size / 16000 > begins[-1] + TURNS[-1].pause
    for turn, begin in zip(TURNS, begins):
        shown = np.asarray(picture(TURNS, begins, begin), int)
        for place, colour, _ in turn.scene:
            x, y = table.PLACES[place]
            assert np.abs(shown[y, x] - table.COLOURS[colour]).max() == 0
    between = picture(TURNS, begins, begins[1] - 1.2)
    assert between.tobytes() not in [picture(TURNS, begins, begin).tobytes() for begin in begins]
    with Image.open(io.BytesIO(table.jpeg(between))) as sent:
        assert sent.size == (640, 480)


def test_engines_are_built_again_only_when_the_model_has_changed(tmp_path, monkeypatch):
    model, built = tmp_path / "model", []
    model.mkdir()
    (model / "config.json").write_text("1")
    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.setattr(run, "MODEL", model)

    def export_or_build(command: list[str], check: bool) -> None:
        built.append(command[2])
        Path(command[4]).mkdir()

    monkeypatch.setattr(run.subprocess, "run", export_or_build)
    for _ in range(2):
        assert run.build_engines(tmp_path / "build", "cpu") == tmp_path / "build" / "engines"
        assert built == ["offline.export_onnx", "offline.build_engines"]
    (model / "config.json").write_text("2")
    run.build_engines(tmp_path / "build", "cpu")
    assert len(built) == 4


def recording(question: np.ndarray, lost: float = 0.0) -> tuple[list, list]:
    """What the demo's recorder has when the node missed the first `lost` seconds of a question: microphone, user_speaking."""
    pcm = np.concatenate([np.zeros(16000, np.int16), question, np.zeros(16000, np.int16)])
    chunks = [((at + 320) / 16000, pcm[at : at + 320]) for at in range(0, pcm.size, 320)]
    loud = [at for at, chunk in chunks if np.abs(chunk.astype(int)).max() > 655]
    return chunks, [(loud[0] + lost + 0.15, True), (loud[-1] + 0.55, False)]


def test_a_question_that_was_not_heard_whole_fails_the_demo():
    assert unheard(*recording(QUESTION), [QUESTION]) == []
    assert "first words are lost" in unheard(*recording(QUESTION, lost=1.0), [QUESTION])[0]
    chunks, speaking = recording(QUESTION)
    assert "2 questions were asked, 1 were heard" in unheard(chunks, speaking, [QUESTION] * 2)[0]
    assert "cut off" in unheard(chunks, [speaking[0], (speaking[1][0] - 1.0, False)], [QUESTION])[0]
    half = chunks[80:]
    assert "did not reach" in unheard(half, speaking, [QUESTION])[0]
    late = [(max(at, 1.5), chunk) for at, chunk in chunks]  # held up, and all there
    assert unheard(late, speaking, [QUESTION]) == []


@pytest.mark.parametrize("listeners", [1, 2])
def test_nothing_is_replayed_before_everybody_listens(tmp_path, listeners):
    """One bag, one or two subscribers in another process: the player waits for two."""
    make_bag(tmp_path / "bag", [replace(TURNS[0], pause=0.1)])
    script = """
import sys, rclpy
from std_msgs.msg import Int16MultiArray
from sensor_msgs.msg import CompressedImage
rclpy.init()
node, heard = rclpy.create_node("listener"), []
for number in range(int(sys.argv[1])):
    node.create_subscription(Int16MultiArray, "audio", heard.append, 100)
    node.create_subscription(CompressedImage, "image_raw/compressed", lambda msg: None, 100)
while True:
    rclpy.spin_once(node, timeout_sec=0.1)
"""
    environment = {**os.environ, "ROS_DOMAIN_ID": own_domain(), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    listener = subprocess.Popen([sys.executable, "-c", script, str(listeners)], env=environment)
    try:
        player = "import sys; from demo import replay_bag; replay_bag.DISCOVERY = 6.0; replay_bag.main()"
        command = [sys.executable, "-c", player, tmp_path / "bag", "--subscribers", "2", "--rate", "10"]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    finally:
        listener.kill()
    if listeners == 2:
        assert done.returncode == 0 and "replayed" in done.stdout, done.stderr
    else:
        assert done.returncode == 1 and "not 2 subscribers within 6 s on /audio" in done.stderr


LATE = """
import signal, sys, time, rclpy
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import Int16MultiArray, String
signal.signal(signal.SIGINT, signal.default_int_handler)
rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
node, samples = rclpy.create_node("late"), []
state = node.create_publisher(String, "state", QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL))
state.publish(String(data="idle"))
try:
    while not node.count_publishers("audio"):
        rclpy.spin_once(node, timeout_sec=0.05)
    time.sleep(2.0)
    node.create_subscription(Int16MultiArray, "audio", lambda msg: samples.append(len(msg.data)), 1000)
    node.create_subscription(CompressedImage, "image_raw/compressed", lambda msg: None, 100)
    while True:
        rclpy.spin_once(node, timeout_sec=0.1)
except KeyboardInterrupt:
    open(sys.argv[1], "w").write(str(sum(samples)))
"""


def test_the_demo_waits_until_the_node_hears_too(tmp_path, monkeypatch):
    """A node that has loaded its engines, and subscribes its microphone two seconds after it was found."""
    monkeypatch.setenv("ROS_DOMAIN_ID", own_domain())
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    command = [sys.executable, "-c", LATE, str(tmp_path / "heard")]
    monkeypatch.setattr(run, "start_node", lambda engine_dir: subprocess.Popen(command))
    recorder, facts = run.play([replace(TURNS[0], pause=0.1)], tmp_path, tmp_path / "bag")
    heard, recorded = int((tmp_path / "heard").read_text()), sum(pcm.size for _, pcm in recorder.microphone)
    assert heard > 0 and heard >= recorded


def test_the_demo_fails_where_a_question_was_not_heard(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "TURNS", (COUNT, SQUARES))
    monkeypatch.setattr(run, "play", lambda *_: (conversation(), {}))
    monkeypatch.setattr(sys, "argv", ["demo", "--engine_dir", "elsewhere", "--output", str(tmp_path)])
    with pytest.raises(SystemExit, match="the demo has failed: of 2 questions, 1 reached the microphone topic"):
        run.main()

"""Replays of recorded conversations: what is said, that it repeats exactly, that a change is seen, and bags that are no good."""

import json
import shutil
import signal
import subprocess
import sys
import time
import wave
from dataclasses import replace
from pathlib import Path

import numpy as np
import omni_sounds
import pytest
from PIL import Image
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from demo.make_bag import make_bag
from demo.script import TURNS
from omni_ros.dialogue.latency import STAGES
from omni_ros.errors import InputError
from omni_ros.replay import compare, latencies, results
from omni_ros.replay.__main__ import main
from omni_ros.replay.bag import Bag
from omni_ros.replay.conversation import Conversation, Turn, timeline

ROOT = Path(__file__).parent.parent
START = 1_700_000_000_000_000_000
GREEDY = ["--set", "temperature=0", "talker_temperature=0", "image_max_age=3"]
STORE = get_typestore(Stores.ROS2_JAZZY)
DRIVERS = {
    "audio_common_msgs/msg/AudioData": "uint8[] data\n",
    "audio_common_msgs/msg/AudioDataStamped": "std_msgs/Header header\naudio_common_msgs/AudioData audio\n",
    "audio_common_msgs/msg/AudioInfo": (
        "uint8 channels\nuint32 sample_rate\nstring sample_format\nuint32 bitrate\nstring coding_format\n"
    ),
}
STORE.register({name: fields for kind, text in DRIVERS.items() for name, fields in get_types_from_msg(text, kind).items()})


def message(kind: str, *fields: object):
    return STORE.types[kind](*fields)


def sound(pcm: np.ndarray):
    return message("std_msgs/msg/Int16MultiArray", message("std_msgs/msg/MultiArrayLayout", [], 0), pcm)


def words(text: str):
    return message("std_msgs/msg/String", text)


def header():
    return message("std_msgs/msg/Header", message("builtin_interfaces/msg/Time", 1, 0), "")


def picture(height: int, width: int, encoding: str = "rgb8"):
    pixels = np.random.default_rng(0).integers(0, 256, height * width * 3, np.uint8)
    return message("sensor_msgs/msg/Image", header(), height, width, encoding, 0, 3 * width, pixels)


def diagnostics(values: dict[str, str]):
    pairs = [message("diagnostic_msgs/msg/KeyValue", key, value) for key, value in values.items()]
    status = message("diagnostic_msgs/msg/DiagnosticStatus", 0, "omni: latency", "stop", "omni_ros", pairs)
    return message("diagnostic_msgs/msg/DiagnosticArray", header(), [status])


def latency(*seconds: float):
    return diagnostics({f"{stage.replace('_', ' ')} s": f"{s:.4f}" for stage, s in zip(STAGES, seconds)})


def write_bag(path: Path, arrivals: list[tuple], plugin: StoragePlugin = StoragePlugin.MCAP) -> Path:
    """`arrivals` are (seconds, topic, message)."""
    with Writer(path, version=9, storage_plugin=plugin) as bag:
        connections = {}
        for at, topic, msg in sorted(arrivals, key=lambda arrival: arrival[0]):
            kind = msg.__msgtype__
            if topic not in connections:
                connections[topic] = bag.add_connection(topic, kind, typestore=STORE)
            bag.write(connections[topic], START + round(at * 1e9), STORE.serialize_cdr(msg, kind))
    return path


def replayed(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def result(folder: Path) -> dict:
    return json.loads((folder / "conversation.json").read_text())


# ---- conversations ------------------------------------------------------------------------------------------------------


def test_the_demo_again_and_again(demo_engine_dir, tmp_path, capsys):
    """Five spoken questions, one of which interrupts: the right answers, exactly repeated; and another voice is noticed."""
    make_bag(tmp_path / "bag", TURNS)
    common = [tmp_path / "bag", "--engine_dir", demo_engine_dir, *GREEDY]
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    assert replayed(common[0], first, *common[1:]) == 0
    said = result(first)
    assert [turn["text"] for turn in said["turns"]] == [turn.answer for turn in TURNS]
    assert said["history"][1].startswith("assistant: One, two,") and said["history"][1].endswith("—")  # it was interrupted
    assert said["problems"] == [] and said["topics"] == {"audio": "/audio", "camera": "/image_raw/compressed"}
    closed = [at for at, speaking in said["user_speaking"] if not speaking]
    for turn, end in zip(said["turns"], closed):
        stages = turn["latency"]
        assert tuple(stages) == STAGES[:-1] and list(stages.values())[1:] == sorted(list(stages.values())[1:])
        assert 0 < stages["inputs"] < 5  # of the wall clock
        assert any(stages["end_of_turn"] == pytest.approx(silence, abs=0.1) for silence in (0.2, 0.8))  # when Smart Turn is asked
        assert turn["speech_s"] == pytest.approx(max(end, turn["asked_s"] + 0.3), abs=0.05)
    interrupted = said["turns"][3]
    assert interrupted["samples"] < interrupted["metrics"]["audio_samples"]  # not all of it was heard
    with wave.open(str(first / "conversation.wav")) as file:
        both = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2)
    for turn in said["turns"]:
        begin = round(turn["speech_s"] * 24000)
        with np.load(first / "speech.npz") as arrays:
            pcm = arrays[f"pcm_{said['turns'].index(turn)}"]
        np.testing.assert_array_equal(both[begin : begin + pcm.size, 1], pcm)
        asked = both[round((turn["asked_s"] - 1.4) * 24000) : round((turn["asked_s"] - 0.8) * 24000), 0]
        assert np.abs(asked.astype(int)).max() > 1000  # the question, where it was heard
    with Image.open(first / "latency_replayed.png") as plot:
        assert plot.width > 1000

    capsys.readouterr()
    assert replayed(common[0], second, *common[1:], "--compare", first) == 0
    assert "the same words, codes and samples" in capsys.readouterr().out
    again = result(second)
    for key in ("user_speaking", "history", "problems"):
        assert again[key] == said[key]

    wilder = [  # its voice is sure of itself: at 0.9 it would say the same
        tmp_path / "bag",
        "--engine_dir",
        demo_engine_dir,
        *GREEDY,
        "talker_temperature=3",
        "talker_top_k=50",
    ]
    assert replayed(wilder[0], third, *wilder[1:], "--compare", first) == 1
    told = capsys.readouterr().out
    assert "turn 1: codes differ from frame" in told and "turn 1: samples differ by up to" in told
    assert "turn 1: answer" not in told  # the same words in another way


def test_a_typed_conversation_with_raw_pictures_in_sqlite3(engine_dirs, tmp_path, capsys):
    arrivals = [
        (0.0, "/front/image", picture(96, 128)),
        (0.2, "/chat/prompt", words("what do you see?")),
        (3.0, "/chat/prompt", words("  ")),
        (3.5, "/front/image", picture(96, 128, "bayer")),
        (9.0, "/chat/prompt", words("and now?")),
    ]
    bag = write_bag(tmp_path / "bag", arrivals, StoragePlugin.SQLITE3)
    short = ["--set", "max_generate_length=6", "max_audio_length=10", "threads=1"]
    assert replayed(bag, tmp_path / "out", "--engine_dir", engine_dirs["plain"], *short) == 0
    said = result(tmp_path / "out")
    assert [turn["said"] for turn in said["turns"]] == ["what do you see?", "and now?"]
    assert [turn["picture"] for turn in said["turns"]] == [[96, 128], None]  # the second one is broken, the first too old
    assert [turn["frames"] for turn in said["turns"]] == [10, 10] and said["parameters"]["seed"] == 0
    assert said["turns"][0]["latency"]["end_of_turn"] == 0 and [at for at, _ in said["problems"]] == [3.0, 3.5]
    err = capsys.readouterr().err
    assert "prompt: the text is empty" in err and "camera: image encoding 'bayer' is not supported" in err


def test_a_turn_that_fails_is_told_and_compared(engine_dirs, tmp_path, capsys):
    bag = write_bag(tmp_path / "bag", [(0.0, "/prompt", words("word " * 5000)), (1.0, "/prompt", words("hello"))])
    common = ["--engine_dir", engine_dirs["plain"], "--set", "max_generate_length=4", "max_audio_length=4", "threads=1"]
    assert replayed(bag, tmp_path / "one", *common) == 0
    turns = result(tmp_path / "one")["turns"]
    assert "tokens" in turns[0]["error"] and turns[0]["frames"] == 0 and turns[1]["error"] == "" and turns[1]["frames"] == 4
    assert replayed(bag, tmp_path / "two", *common, "--compare", tmp_path / "one") == 0


def test_sound_of_a_driver_with_its_format_beside_it(engine_dirs, tmp_path):
    """audio_common_msgs at 44.1 kHz, stereo, as audio_info says; of a package that is not installed here."""
    from demo.make_bag import read_mono

    pcm = np.concatenate([np.zeros(8000, np.int16), read_mono(TURNS[0].sound), np.zeros(16000, np.int16)])
    seconds = pcm.size / 16000
    at44 = np.interp(np.arange(int(seconds * 44100)) / 44100, np.arange(pcm.size) / 16000, pcm)
    stereo = np.repeat(at44.astype("<i2"), 2).tobytes()
    step = 882 * 4  # bytes: 20 ms
    arrivals = [(0.0, "/mic/audio_info", message("audio_common_msgs/msg/AudioInfo", 2, 44100, "S16LE", 0, "wave"))]
    for number in range(len(stereo) // step):
        data = np.frombuffer(stereo[number * step : (number + 1) * step], np.uint8)
        stamped = message("audio_common_msgs/msg/AudioDataStamped", header(), message("audio_common_msgs/msg/AudioData", data))
        arrivals.append((0.02 * (number + 1), "/mic/audio", stamped))
    arrivals.append((0.0, "/speech/audio", sound(np.zeros(320, np.int16))))  # the robot's own voice is not its microphone
    bag = write_bag(tmp_path / "bag", arrivals)
    short = ["--set", "max_generate_length=4", "max_audio_length=4", "threads=1"]
    assert replayed(bag, tmp_path / "out", "--engine_dir", engine_dirs["plain"], *short) == 0
    said = result(tmp_path / "out")
    assert said["topics"]["audio"] == "/mic/audio" and len(said["turns"]) == 1
    assert said["turns"][0]["sound_s"] > 1.0 and said["problems"] == []


def test_interrupted_by_its_user_it_leaves_nothing(demo_engine_dir, tmp_path):
    make_bag(tmp_path / "bag", [*TURNS, *TURNS])  # long enough to be stopped in
    command = [
        sys.executable,
        "-m",
        "omni_ros.replay",
        tmp_path / "bag",
        tmp_path / "out",
        "--engine_dir",
        demo_engine_dir,
        *GREEDY,
    ]
    hears = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}  # a job in the background ignores it
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, **pipes, **hears) as process:
        process.stdout.readline()  # the first answer
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        _, err = process.communicate(timeout=30)
    assert process.returncode == 2 and "replay: stopped; nothing was written" in err and "Traceback" not in err
    assert time.monotonic() - began < 5 and [p.name for p in tmp_path.iterdir()] == ["bag"]


# ---- comparing ----------------------------------------------------------------------------------------------------------


def a_turn(**changes: object) -> Turn:
    codes = np.arange(16 * 8, dtype=np.int16).reshape(16, 8)
    values = {"asked_s": 2.0, "said": "hello", "sound_s": 0.0, "picture": [96, 128], "reason": "stop", "audio_reason": "stop"}
    values |= {"text": "good day", "error": "", "token_ids": [3, 4], "latency": {"end_of_turn": 0.5}, "metrics": {}}
    values |= {"codes": codes, "pcm": np.arange(1000, dtype=np.int16), "speech_s": 2.3}
    return Turn(**{**values, **changes})


OTHER_CODES = a_turn().codes.copy()
OTHER_CODES[3, 5] += 1


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"text": "good night"}, "answer 'good night', before 'good day'"),
        ({"error": "broken"}, "answer failed (broken), before 'good day'"),
        ({"token_ids": [3, 5]}, "the same words from other tokens"),
        ({"codes": OTHER_CODES}, "codes differ from frame 5 on (8 frames, before 8)"),
        ({"codes": a_turn().codes[:, :6]}, "codes differ from frame 6 on (6 frames, before 8)"),
        ({"pcm": np.arange(900, dtype=np.int16)}, "samples differ by up to 0.0000 (900 played, before 1000)"),
        ({"pcm": np.arange(1000, dtype=np.int16) + np.int16(328)}, "samples differ by up to 0.0100"),
        ({"reason": "length"}, "reason length, before stop"),
        ({"said": "", "sound_s": 1.5}, "asked 1.500 s of sound and a picture of 128 x 96, before 'hello'"),
        ({"picture": None}, "asked 'hello', before 'hello' and a picture"),
        ({"speech_s": 2.4}, "speech begins at 2.4 s, before at 2.3 s"),
        ({"asked_s": 2.1}, "asked at 2.100 s, before at 2.000 s"),
    ],
)
def test_every_change_of_a_turn_is_told(changes, told):
    before, now = Conversation(turns=[a_turn()]), Conversation(turns=[a_turn(**changes)])
    found = compare.differences(now, before)
    assert len(found) == 1 and found[0].startswith("turn 1: ") and told in found[0]
    assert compare.differences(before, replace(before, turns=[a_turn(latency={}, metrics={"total_s": 9})])) == []  # times are not


def test_changes_around_the_turns_are_told():
    before = Conversation(turns=[a_turn()], user_speaking=[(1.0, True), (2.0, False)], history=["user: hello"])
    now = Conversation(turns=[], user_speaking=[(1.032, True), (2.0, False)], history=[])
    assert len(compare.differences(now, before)) == 3


def test_a_result_is_read_as_it_was_written(tmp_path):
    was = Conversation(turns=[a_turn(), a_turn(text="二")], user_speaking=[(1.0, True)], history=["x"], problems=[(1.0, "y")])
    was.heard = [(0.5, np.full(160, 100, np.int16))]
    results.write(tmp_path / "out", lambda folder: results.write_conversation(folder, was, {"answer_after_s": 0.3}))
    now, facts = results.read_conversation(tmp_path / "out")
    was.user_speaking = [tuple(pair) for pair in was.user_speaking]
    assert compare.differences(now, was) == [] and facts["answer_after_s"] == 0.3 and now.turns[1].text == "二"
    path = tmp_path / "out" / "speech.npz"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match="conversation.json: is no result of a replay, or a damaged one"):
        results.read_conversation(tmp_path / "out")


def test_a_result_appears_whole_or_not_at_all(tmp_path):
    def fail(folder: Path) -> None:
        (folder / "part").write_text("half of it")
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match="out: cannot be written .*No space left"):
        results.write(tmp_path / "out", fail)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="out: exists; give a new folder"):
        results.write(tmp_path / "out", lambda folder: None)
    with pytest.raises(InputError, match="no/such/out: cannot be made"):
        results.check_new(tmp_path / "no" / "such" / "out")


def test_sound_lies_where_it_was_played():
    one, two = np.full(240, 1, np.int16), np.full(240, 2, np.int16)  # 10 ms each
    placed = timeline([(0.01, one), (0.012, two), (0.05, one)], 24000)
    assert placed.size == 1440 and placed[239] == 0 and (placed[240:480] == 1).all()
    assert (placed[480:720] == 2).all() and not placed[720:1200].any() and (placed[1200:] == 1).all()
    jitter = timeline([(0.0, one), (0.013, two)], 24000, gap=0.1)
    assert jitter.size == 480 and jitter.all()  # no hole where a message came late


# ---- latencies ----------------------------------------------------------------------------------------------------------


def test_recorded_latencies_without_engines(tmp_path, capsys):
    rows = [(0.5, 0.52, 0.6, 0.61, 0.7, 0.71, 0.72), (0.6, 0.62, 0.7, 0.71, 0.8, 0.81, 0.92), (0.7, 0.8)]
    bag = write_bag(tmp_path / "bag", [(i, "/robot1/latency", latency(*row)) for i, row in enumerate(rows)])
    assert replayed(bag, tmp_path / "out") == 0
    out = capsys.readouterr().out
    assert [line.split()[-1] for line in out.splitlines()[1:3]] == ["3", "3"] and "first played" in out
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["latency_recorded.png"]
    table = latencies.percentiles(latencies.recorded(Bag(bag)))
    assert table["end_of_turn"] == {"p50": 0.6, "p90": 0.68, "p99": 0.698, "max": 0.7, "answers": 3}
    assert table["first_played"]["max"] == 0.92 and table["first_played"]["answers"] == 2


def test_the_plot_has_a_bar_for_every_stage(tmp_path):
    latencies.plot([{stage: 0.1 * (n + 1) for n, stage in enumerate(STAGES)}] * 3, "x", tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as plot:
        colours = np.asarray(plot.convert("RGB")).reshape(-1, 3).astype(int)
    for rgb in ((31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189), (140, 86, 75), (227, 119, 194)):
        assert (np.abs(colours - rgb).max(axis=1) < 6).sum() > 3000  # more than its square in the legend


@pytest.mark.parametrize(
    ("arrivals", "told"),
    [
        ([(0, "/latency", diagnostics({"end of turn s": "soon"}))], "/latency has a latency that is no number"),
        ([(0, "/latency", diagnostics({"other": "1"}))], "its latency topic has no answer"),
        ([(0, "/prompt", words("x"))], "no topic for latency was found; it has /prompt (std_msgs/msg/String)"),
    ],
)
def test_a_bag_without_latencies_says_so(tmp_path, capsys, arrivals, told):
    assert replayed(write_bag(tmp_path / "bag", arrivals), tmp_path / "out") == 2
    assert told in capsys.readouterr().err and not (tmp_path / "out").exists()


# ---- bags that are no good ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("topics", "given", "chosen"),
    [
        (["/audio"], {}, "/audio"),
        (["/mic/audio", "/speech/audio", "/speech_played"], {}, "/mic/audio"),
        (["/microphone"], {}, "/microphone"),
        (["/left", "/right"], {"audio": "/left"}, "/left"),
        (["/a/audio", "/b/audio"], {}, "several topics may be the audio: /a/audio, /b/audio; say which with --audio TOPIC"),
        (["/left", "/right"], {}, "several topics may be the audio"),
        (["/speech/audio"], {}, None),
        (["/audio"], {"audio": "none"}, None),
        (["/audio"], {"audio": "/mic"}, "has no topic '/mic'; it has /audio (std_msgs/msg/Int16MultiArray)"),
        (["/audio"], {"camera": "/audio"}, "/audio is of type std_msgs/msg/Int16MultiArray, but the camera topic is"),
    ],
)
def test_which_topic_is_the_microphone(tmp_path, topics, given, chosen):
    bag = write_bag(tmp_path / "bag", [(0.0, topic, sound(np.zeros(320, np.int16))) for topic in topics])
    if chosen is None or chosen.startswith("/") and " " not in chosen:
        assert Bag(bag, given).topics.get("audio") == chosen
    else:
        with pytest.raises(InputError) as caught:
            Bag(bag, given)
        assert chosen in str(caught.value) and str(bag) in str(caught.value)


def broken_mcap(folder: Path, keep: float) -> None:
    (file,) = folder.glob("*.mcap")
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * keep)])


def zeros_inside(folder: Path, pattern: str) -> None:
    (file,) = folder.glob(pattern)
    content = bytearray(file.read_bytes())
    content[len(content) // 3 : len(content) // 3 + 4000] = bytes(4000)
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("plugin", "harm"),
    [
        (StoragePlugin.MCAP, lambda folder: broken_mcap(folder, 0.6)),
        (StoragePlugin.MCAP, lambda folder: broken_mcap(folder, 0.0)),
        (StoragePlugin.MCAP, lambda folder: zeros_inside(folder, "*.mcap")),
        (StoragePlugin.MCAP, lambda folder: next(folder.glob("*.mcap")).unlink()),
        (StoragePlugin.SQLITE3, lambda folder: zeros_inside(folder, "*.db3")),
        (StoragePlugin.SQLITE3, lambda folder: next(folder.glob("*.db3")).write_bytes(b"")),
        (StoragePlugin.MCAP, lambda folder: (folder / "metadata.yaml").write_text("rosbag2_bagfile_information: {version: x")),
        (StoragePlugin.MCAP, lambda folder: (folder / "metadata.yaml").unlink()),
    ],
)
def test_damaged_bags(tmp_path, capsys, plugin, harm):
    noise = np.random.default_rng(0).integers(-100, 100, (200, 320)).astype(np.int16)
    bag = write_bag(tmp_path / "bag", [(0.02 * i, "/audio", sound(pcm)) for i, pcm in enumerate(noise)], plugin)
    harm(bag)
    with pytest.raises(InputError, match="damaged or truncated|reindex") as caught:
        list(Bag(bag).arrivals("audio"))
    assert str(bag) in str(caught.value)
    assert replayed(bag, tmp_path / "out", "--engine_dir", tmp_path) == 2
    assert not (tmp_path / "out").exists() and "replay: " in capsys.readouterr().err


def test_damage_in_the_middle_of_a_replay_leaves_nothing(engine_dirs, tmp_path, capsys):
    """A message whose bytes are not of its type, after ones that are."""
    good = [(0.02 * i, "/audio", sound(np.zeros(320, np.int16))) for i in range(5)]
    with Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.MCAP) as bag:
        connection = bag.add_connection("/audio", good[0][2].__msgtype__, typestore=STORE)
        for at, _, msg in good:
            bag.write(connection, START + round(at * 1e9), STORE.serialize_cdr(msg, msg.__msgtype__))
        bag.write(connection, START + 10**9, b"\0\1\0\0\xff\xff\xff\xff\xff")
    assert replayed(tmp_path / "bag", tmp_path / "out", "--engine_dir", engine_dirs["plain"], "--set", "threads=1") == 2
    assert "after 5 messages" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--set", "temprature=1"], "parameter 'temprature' is unknown: did you mean temperature?"),
        (["--set", "temperature"], "--set temperature: must be NAME=VALUE"),
        (["--set", "temperature=hot"], "parameter temperature is 'hot', but must be a number from 0 to 5"),
        (["--set", "temperature=9"], "parameter temperature is '9.0', but must be a number from 0 to 5"),
        (["--params_file", "no.yaml"], "no.yaml: cannot be read"),
        (["--compare", "nothing"], "nothing/conversation.json: is no result of a replay"),
        (["--engine_dir", "no/engines"], "config.json: not found"),
        (["--engine_dir", "x", "--audio", "none"], "no topic for audio or prompt or say was found"),
    ],
)
def test_what_cannot_be_done_is_said(tmp_path, capsys, arguments, told):
    bag = write_bag(tmp_path / "bag", [(0.0, "/audio", sound(np.zeros(320, np.int16)))])
    assert replayed(bag, tmp_path / "out", *arguments) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_parameter_file_counts_for_a_node_called_omni(tmp_path):
    from omni_ros.nodes.parameter_file import FileParameters

    path = tmp_path / "my.yaml"
    path.write_text(
        "/**/omni: {ros__parameters: {temperature: 1, use_sim_time: true, qos_overrides: {/image_raw: {}}}}\n"
        "robot: {omni: {ros__parameters: {speaker: ethan, foreign_thing_here: 3}}}\n"
        "camera: {ros__parameters: {top_k: 7}}\n"
    )
    read = FileParameters(path, top_p=0.5)
    values = read.values()
    assert (values["temperature"], values["speaker"], values["top_p"], values["top_k"]) == (1.0, "ethan", 0.5, 20)
    assert read.use_sim_time and len(read.unknown) == 1 and "'foreign_thing_here' is unknown and ignored" in read.unknown[0]
    for text, told in (("a: [", "is no YAML"), ("camera: {ros__parameters: {x: 1}}", "has no parameters of a node called omni")):
        path.write_text(text)
        with pytest.raises(InputError, match=told):
            FileParameters(path)


def test_without_rosbags_or_ros():
    """The first is asked for by name; the second is not needed."""
    hide = "import sys\nclass Hide:\n def find_spec(self, name, *_):\n  if name.split('.')[0] in {!r}: raise ImportError(name)\n"
    hide += "sys.meta_path.insert(0, Hide())\n"
    run = hide + "from omni_ros.replay.__main__ import main\nsys.exit(main(sys.argv[1:]))"
    for hidden, told in (({"rosbags"}, "pip install 'omni_ros[replay]'"), ({"rclpy", "rcl_interfaces"}, "bag: not found")):
        code = run.replace("{!r}", repr(hidden))
        command = [sys.executable, "-c", code, "bag", "out", "--engine_dir", "engines"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2 and told in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_a_bag_that_was_moved_is_the_same_bag(tmp_path):
    bag = write_bag(tmp_path / "bag", [(0.0, "/prompt", words("hello")), (1.0, "/prompt", words("again"))])
    moved = shutil.move(bag, tmp_path / "elsewhere")
    assert [arrival.message.data for arrival in Bag(Path(moved)).arrivals("prompt")] == ["hello", "again"]


# ---- what else the node takes ---------------------------------------------------------------------------------------------


def cloud(metres: float, height: int = 48, width: int = 64):
    """A wall of one colour, organised, as cameras send it."""
    rows = np.zeros((height, width, 16), np.uint8)
    rows[..., 8:12] = np.full((height, width, 1), metres, "<f4").view(np.uint8)
    rows[..., 12:15] = (10, 20, 200)
    fields = [message("sensor_msgs/msg/PointField", axis, 4 * i, 7, 1) for i, axis in enumerate(("x", "y", "z", "rgb"))]
    kind = "sensor_msgs/msg/PointCloud2"
    return message(kind, header(), height, width, fields, False, 16, 16 * width, rows.reshape(-1), False)


def test_words_to_say_facts_and_distances_are_replayed(engine_dirs, tmp_path):
    arrivals = [
        (0.2, "/robot/facts", words('{"battery": 0.4}')),
        (0.3, "/camera/points", cloud(2.0)),
        (0.3, "/camera/image_raw", picture(96, 128)),
        (0.5, "/robot/prompt", words("Where is the wall?")),
        (6.0, "/robot/say", words("Hello.")),
        (6.1, "/robot/facts", words("{")),
    ]
    bag = write_bag(tmp_path / "bag", arrivals)
    options = ["--engine_dir", engine_dirs["plain"], *GREEDY, "max_generate_length=6", "max_audio_length=20", "runaway_limit=0"]
    assert replayed(bag, tmp_path / "picture", *options) == 0
    assert replayed(bag, tmp_path / "points", *options, "image_transport=points") == 0
    seen, measured = result(tmp_path / "picture"), result(tmp_path / "points")
    assert seen["topics"]["camera"] == "/camera/image_raw" and "points" not in seen["topics"]
    assert measured["topics"]["points"] == "/camera/points" and "camera" not in measured["topics"]
    for told in (seen, measured):
        asked, said = told["turns"]
        assert asked["said"] == "Where is the wall?" and "battery: 0.4 (now)" in asked["facts"]
        assert (said["say"], said["said"], said["text"]) == ("Hello.", "", "Hello.") and said["samples"] > 0
        assert said["asked_s"] == pytest.approx(5.8 + 0.3, abs=0.35) and told["history"][-1] == "assistant: Hello."
        assert [what for _, what in told["problems"]] == [told["problems"][0][1]] and "facts" in told["problems"][0][1]
    assert seen["turns"][0]["picture"] == [96, 128] and measured["turns"][0]["picture"] == [48, 64]
    assert "nearest 2.00 m" in measured["turns"][0]["facts"] and "nearest" not in seen["turns"][0]["facts"]
    assert replayed(bag, tmp_path / "again", *options, "--compare", tmp_path / "picture") == 0
    other = write_bag(tmp_path / "other", [(0.2, "/facts", words('{"battery": 0.1}')), *arrivals[1:5]])
    assert replayed(other, tmp_path / "changed", *options, "--compare", tmp_path / "picture") == 1


def test_a_button_is_replayed(engine_dirs, tmp_path):
    """What is said while it is held is the turn; the same sound without it is none."""
    pcm = np.concatenate([np.zeros(8000), omni_sounds.question(), np.zeros(16000)]).astype(np.int16)
    arrivals = [
        (0.02 * (i + 1), "/audio", sound(piece))
        for i, piece in enumerate(np.split(pcm[: pcm.size // 320 * 320], pcm.size // 320))
    ]
    held = [
        (0.3, "/push_to_talk", message("std_msgs/msg/Bool", True)),
        (3.0, "/push_to_talk", message("std_msgs/msg/Bool", False)),
    ]
    options = ["--engine_dir", engine_dirs["plain"], *GREEDY, "max_generate_length=6", "max_audio_length=6", "runaway_limit=0"]
    options += ["turn_start=push_to_talk", "vad=energy"]
    pressed = write_bag(tmp_path / "pressed", [*arrivals, *held])
    assert replayed(pressed, tmp_path / "with", *options) == 0
    (turn,) = result(tmp_path / "with")["turns"]
    assert 1.0 < turn["sound_s"] < 3.0 and result(tmp_path / "with")["topics"]["push_to_talk"] == "/push_to_talk"
    assert replayed(write_bag(tmp_path / "alone", arrivals), tmp_path / "without", *options) == 0
    assert result(tmp_path / "without")["turns"] == []

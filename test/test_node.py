"""The omni node as its users meet it: its own process, real DDS, rosidl's field checks on."""
# ruff: noqa: F811 - fixtures are imported, and named again where they are used

import array
import io
import signal
import time

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from omni_process import (  # noqa: F401 - some are fixtures
    LONG,
    PHOTO,
    SHORT,
    Client,
    OmniProcess,
    answer,
    engine_dir,
    omni,
    picture,
    question,
    ros,
    running,
    wait,
)
from PIL import Image as Picture
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Int16MultiArray, String
from std_srvs.srv import SetBool, Trigger

from omni_ros.dialogue.latency import STAGES


def test_two_turns_of_text(omni):
    for turn in (1, 2):
        omni.prompt.publish(String(data="What is your name?"))
        answer(omni, turn)
    assert "".join(omni.texts("response_stream")) == "".join(omni.texts("response")) != ""
    assert omni.samples() == 2 * (10 * 1920 - 555)  # every sample of ten codec frames, twice
    assert omni.texts("speaking") == [True, False] * 2
    assert omni.texts("state") == ["thinking", "speaking", "idle"] * 2
    assert omni.received["speech/audio"][0].data.typecode == "h"
    assert any(omni.received["speech/audio"][0].data)


def test_a_spoken_question_with_a_picture(omni):
    omni.set(image_max_age=10.0)
    omni.show(PHOTO)
    omni.speak(question())
    answer(omni)
    assert omni.texts("user_speaking") == [True, False]
    assert omni.texts("response")[0] and omni.samples() == 10 * 1920 - 555
    values = {pair.key: pair.value for pair in omni.status().values}
    # 4 x 3 merged patches and 2.9 s at 13 tokens per second, each with a few tokens around it: both reached the model
    assert 12 + 35 + 4 < int(values["pipeline prompt_tokens"]) < 12 + 39 + 20


def test_every_answer_says_where_its_time_went(omni):
    omni.speak(question())
    answer(omni)
    wait(lambda: omni.received["latency"], 5)
    (msg,) = omni.received["latency"]
    assert msg.header.stamp.sec > 0 and msg.status[0].name == "omni: latency" and msg.status[0].message == "length"
    stages = {pair.key: float(pair.value) for pair in msg.status[0].values}
    assert list(stages) == [f"{stage.replace('_', ' ')} s" for stage in STAGES]
    assert 0.1 < stages["end of turn s"] < 2.5
    made = list(stages.values())[1:]  # which may have begun before the end of the turn
    assert made == sorted(made) and stages["end of turn s"] <= stages["first played s"] < 5.0
    told = omni.values()
    assert {key: float(told[f"latency {key}"]) for key in stages} == pytest.approx(stages, abs=1e-3)


def prompt_tokens(omni: Client, text: str) -> int:
    """Ask `text`, and return how many tokens the model was given."""
    omni.prompt.publish(String(data=text))
    answer(omni, len(omni.received["response"]) + 1)
    return int({pair.key: pair.value for pair in omni.status().values}["pipeline prompt_tokens"])


def test_the_picture_is_used_only_while_it_is_young_and_wanted(omni):
    def tokens_of_first_turn(**parameters: object) -> int:
        omni.call(Trigger, "omni/reset")
        omni.set(**parameters)
        omni.show(PHOTO)
        time.sleep(0.2)
        return prompt_tokens(omni, "Look.")

    without = tokens_of_first_turn(use_camera=False)
    assert tokens_of_first_turn(use_camera=True) == without + 12 + 2  # 4 x 3 merged patches between start and end
    assert tokens_of_first_turn(image_max_age=0.1) == without


def test_history_and_system_prompt_reach_the_model_until_reset(omni):
    first = prompt_tokens(omni, "And now?")
    assert prompt_tokens(omni, "And now?") > first
    assert omni.call(Trigger, "omni/reset").success
    omni.set(system_prompt="You are a robot.")
    assert first < prompt_tokens(omni, "And now?") < first + 60


def test_cancel_stops_speech_at_once_and_the_next_turn_works(omni):
    omni.set(**LONG)
    omni.prompt.publish(String(data="Tell me a long story."))
    wait(lambda: len(omni.received["speech/audio"]) >= 5, 20)
    assert omni.call(Trigger, "omni/cancel").success
    heard = omni.samples()
    wait(lambda: omni.texts("speaking")[-1] is False, 1)
    time.sleep(0.5)
    assert omni.samples() <= heard + 1440  # at most the message that was under way
    assert heard < 3 * 24000 < LONG["max_audio_length"] * 1920
    assert omni.received["response"] == []
    assert not omni.call(Trigger, "omni/cancel").success  # nothing is left to stop
    omni.set(**SHORT)
    omni.prompt.publish(String(data="Go on."))
    answer(omni)
    assert omni.samples() == heard + 10 * 1920 - 555 or omni.samples() == heard + 1440 + 10 * 1920 - 555


def test_speech_is_paced(omni):
    omni.set(max_audio_length=40)
    omni.prompt.publish(String(data="Speak."))
    wait(lambda: omni.received["speech/audio"], 20)
    started = time.monotonic()
    while omni.state != "idle":
        ahead = omni.samples() / 24000 - (time.monotonic() - started)
        assert ahead < 0.3 + 0.06 + 0.15  # lead, one message, and some slack for two busy cores
        time.sleep(0.02)
    assert omni.samples() == 40 * 1920 - 555
    assert abs(time.monotonic() - started - omni.samples() / 24000) < 0.5


def test_a_new_prompt_preempts(omni):
    omni.set(**LONG)
    omni.prompt.publish(String(data="Tell me a long story."))
    wait(lambda: omni.received["speech/audio"], 20)
    omni.set(**SHORT)
    omni.prompt.publish(String(data="Stop. What time is it?"))
    answer(omni)
    assert len(omni.received["response"]) == 1
    assert omni.texts("speaking") == [True, False, True, False]


def test_without_preemption_the_newest_prompt_waits(omni):
    omni.set(preempt=False)
    for text in ("First.", "Dropped.", "Second."):
        omni.prompt.publish(String(data=text))
        wait(lambda: omni.state != "idle", 20)
        time.sleep(0.05)
    answer(omni, 2)
    time.sleep(0.3)
    assert len(omni.received["response"]) == 2
    assert omni.samples() == 2 * (10 * 1920 - 555)


def test_disabled_means_deaf(omni):
    assert omni.call(SetBool, "omni/enable", SetBool.Request(data=False)).success
    omni.prompt.publish(String(data="Are you there?"))
    wait(lambda: omni.state == "disabled", 20)
    time.sleep(0.5)
    assert omni.received["response_stream"] == []
    assert omni.call(SetBool, "omni/enable", SetBool.Request(data=True)).success
    omni.prompt.publish(String(data="Are you there?"))
    answer(omni)


def test_a_failed_turn_is_reported_and_the_next_one_works(omni):
    omni.set(speaker="nobody")
    omni.prompt.publish(String(data="Who are you?"))
    wait(lambda: omni.state == "error", 10)
    status = omni.status()
    assert status.level == DiagnosticStatus.ERROR and "nobody" in status.message
    omni.set(speaker="", audio_output=False)  # its speech would be cut short by max_audio_length, which is a warning
    omni.prompt.publish(String(data="Who are you?"))
    answer(omni)
    assert omni.status().level == DiagnosticStatus.OK


def test_a_prompt_that_is_too_long_is_reported(omni):
    omni.prompt.publish(String(data="long " * 5000))
    wait(lambda: omni.state == "error", 10)
    assert "tokens" in omni.status().message


def test_history_makes_room_for_a_long_prompt(omni):
    long = "one two three four " * 40
    alone = prompt_tokens(omni, long)
    assert 1024 / 3 < alone < 1024 / 2  # two fit into the prompt limit, three do not
    assert alone < prompt_tokens(omni, long) <= 1024
    assert alone < prompt_tokens(omni, long) <= 1024


def test_a_full_kv_cache_ends_the_turn_with_a_reason_and_the_next_one_works(omni):
    omni.set(audio_output=False, max_generate_length=32768, temperature=0.0)
    omni.prompt.publish(String(data="Talk for ever."))
    answer(omni)
    status = omni.status()
    assert status.level == DiagnosticStatus.WARN and "KV cache full" in status.message
    omni.set(**SHORT)
    omni.prompt.publish(String(data="Thank you."))
    answer(omni, 2)
    assert omni.status().level == DiagnosticStatus.OK


def bad_image(**changes) -> Image:
    msg = picture(PHOTO)
    for name, value in changes.items():
        setattr(msg, name, value)
    return msg


def test_garbage_is_reported_and_survived(omni):
    def bad_messages() -> dict[str, int]:
        prefix = "bad messages "
        values = {pair.key: pair.value for pair in omni.status().values}
        return {key.removeprefix(prefix): int(value) for key, value in values.items() if key.startswith(prefix)}

    garbage = [
        (omni.prompt, String(data=" \n")),
        (omni.audio, Int16MultiArray()),
        (omni.image, bad_image(encoding="jpeg")),
        (omni.image, Image(encoding="rgb8")),
        (omni.image, bad_image(data=array.array("B", bytes(101)))),
        (omni.image, bad_image(step=1)),
    ]
    for publisher, msg in garbage:
        publisher.publish(msg)
        time.sleep(0.1)  # the camera topic keeps only the newest
    wait(lambda: bad_messages() == {"prompt": 1, "audio": 1, "camera": 4}, 20)
    status = omni.status()
    assert status.level == DiagnosticStatus.WARN
    assert status.message.startswith("camera: image step 1 is less than a row")
    omni.show(PHOTO)
    omni.prompt.publish(String(data="Are you well?"))
    answer(omni)


def test_a_stream_that_contradicts_its_sample_rate_is_noticed(omni):
    omni.speak(np.zeros(16000 * 12, np.int16), speed=3)  # what a 48 kHz microphone looks like
    status = omni.status()
    assert status.level == DiagnosticStatus.WARN
    assert "16000 Hz" in status.message and "samples per second" in status.message


def test_muted_while_speaking(omni):
    omni.set(mute_while_speaking=True, max_audio_length=70)  # 5.6 s: longer than the question
    omni.prompt.publish(String(data="Speak."))
    wait(lambda: omni.texts("speaking")[-1:] == [True], 10)
    omni.speak(question())
    answer(omni)
    assert True not in omni.texts("user_speaking")
    assert len(omni.received["response"]) == 1


def test_lifecycle_by_hand(omni):
    def change(transition: int) -> bool:
        request = ChangeState.Request(transition=Transition(id=transition))
        return omni.call(ChangeState, "omni/change_state", request).success

    def state() -> str:
        return omni.call(GetState, "omni/get_state").current_state.label

    omni.set(**LONG)
    omni.prompt.publish(String(data="Tell me a long story."))
    wait(lambda: omni.received["speech/audio"], 20)
    assert change(Transition.TRANSITION_DEACTIVATE) and state() == "inactive"
    wait(lambda: omni.state == "inactive" and omni.texts("speaking")[-1] is False, 2)
    assert change(Transition.TRANSITION_CLEANUP) and state() == "unconfigured"
    assert not omni.call(Trigger, "omni/cancel").success
    assert change(Transition.TRANSITION_CONFIGURE) and change(Transition.TRANSITION_ACTIVATE)
    omni.set(**SHORT)
    wait(lambda: omni.prompt.get_subscription_count() > 0, 10)
    omni.prompt.publish(String(data="Welcome back."))
    answer(omni)


def test_read_only_and_ranges(omni):
    def refused(name: str, value: object) -> bool:
        parameter = Parameter(name, value=value).to_parameter_msg()
        done = omni.call(SetParameters, "omni/set_parameters", SetParameters.Request(parameters=[parameter]))
        return not done.results[0].successful

    assert refused("engine_dir", "elsewhere")
    assert refused("temperature", -1.0)
    assert refused("max_generate_length", 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_node_cleanly_while_it_answers(ros, engine_dir, tmp_path, number):
    namespace = f"robot{number}"  # the node of the other tests may still be there
    client = Client(namespace)
    process = OmniProcess(tmp_path / "log", namespace, engine_dir=engine_dir, vad="energy", turn_detector="silence", **LONG)
    try:
        wait(lambda: client.connected, 30)
        client.prompt.publish(String(data="Tell me a long story."))
        wait(lambda: client.received["speech/audio"], 20)
        code, seconds = process.stop(number)
        assert code == 0 and seconds < 2, process.log.read_text()
        assert "Traceback" not in process.log.read_text()
        wait(lambda: client.texts("speaking")[-1] is False, 1)
    finally:
        process.process.kill()
        client.close()


def test_a_broken_jpeg_costs_the_picture_not_the_answer(ros, engine_dir, tmp_path):
    client = Client("jpeg")
    camera = client.node.create_publisher(CompressedImage, "image_raw/compressed", 10)
    parameters = {"engine_dir": engine_dir, "image_transport": "compressed", "image_max_age": 60.0, **SHORT}
    process = OmniProcess(tmp_path / "log", "jpeg", **parameters)
    try:
        wait(lambda: client.connected and camera.get_subscription_count(), 30)
        file = io.BytesIO()
        Picture.fromarray(PHOTO).save(file, "JPEG")
        whole = prompt_tokens_with(client, camera, file.getvalue())
        client.call(Trigger, "omni/reset")
        broken = prompt_tokens_with(client, camera, file.getvalue()[:-1000])
        assert broken == whole - 12 - 2
        assert "not a readable image" in process.log.read_text()
    finally:
        process.stop()
        client.close()


def test_a_camera_picture_is_resized_once(ros, engine_dir, tmp_path):
    """To transformers' picture of at most image_max_pixels: 160 x 320 of 720p, 5 x 10 tokens. Twice made it 60."""
    client = Client("hd")
    camera = client.node.create_publisher(CompressedImage, "image_raw/compressed", 10)
    parameters = {"engine_dir": engine_dir, "image_transport": "compressed", "image_max_age": 60.0, **SHORT}
    process = OmniProcess(tmp_path / "log", "hd", image_max_pixels=62000, **parameters)
    try:
        wait(lambda: client.connected and camera.get_subscription_count(), 30)
        without = prompt_tokens(client, "Look.")
        client.call(Trigger, "omni/reset")
        file = io.BytesIO()
        Picture.fromarray(np.random.default_rng(0).integers(0, 256, (720, 1280, 3), dtype=np.uint8)).save(file, "JPEG")
        assert prompt_tokens_with(client, camera, file.getvalue()) == without + 50 + 2
    finally:
        process.stop()
        client.close()


def prompt_tokens_with(client: Client, camera, jpeg: bytes) -> int:
    for _ in range(5):  # the first may be gone before the node's end of the topic knows this publisher
        camera.publish(CompressedImage(format="jpeg", data=array.array("B", jpeg)))
        time.sleep(0.1)
    return prompt_tokens(client, "Look.")


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({}, "engine_dir is empty"),
        ({"engine_dir": "/nowhere"}, "/nowhere/thinker"),
        ({"vad": "loudness"}, "vad is 'loudness'"),
        ({"turn_detector": "clever"}, "turn_detector is 'clever', but must be smart or silence"),
        ({"image_transport": "theora"}, "image_transport is 'theora'"),
        ({"audio_in_type": "std_msgs/msg/String"}, "audio_in_type 'std_msgs/msg/String'"),
        ({"speaker": "nobody"}, "nobody"),
    ],
)
def test_what_cannot_be_configured_is_named(ros, engine_dir, tmp_path, parameters, reason):
    defaults = {"engine_dir": engine_dir} if parameters else {}
    process = OmniProcess(tmp_path / "log", **defaults | parameters)
    try:
        assert process.process.wait(30) == 1
        assert reason in process.log.read_text()
    finally:
        process.process.kill()


def test_a_missing_engine_file_is_named(ros, engine_dir, tmp_path):
    copy = tmp_path / "engines"
    copy.mkdir()
    for part in engine_dir.iterdir():
        (copy / part.name).symlink_to(part)
    (copy / "talker").unlink()
    (copy / "talker").mkdir()
    for file in (engine_dir / "talker").iterdir():
        if file.name != "text_projection.safetensors":
            (copy / "talker" / file.name).symlink_to(file)
    process = OmniProcess(tmp_path / "log", engine_dir=copy)
    assert process.process.wait(30) == 1
    assert "text_projection.safetensors" in process.log.read_text()

"""What a dialogue computes ahead while the user speaks, on simulated time."""

import numpy as np
import pytest
from scripted_model import PER_TOKEN, PREFILL
from test_dialogue import ANSWERS, World

from omni_ros.dialogue.endpoint import FRAME, SAMPLE_RATE
from omni_ros.dialogue.settings import Settings
from omni_ros.errors import InputError


@pytest.fixture
def world():
    world = World()
    yield world
    world.close()


def picture(value: int) -> np.ndarray:
    return np.full((48, 64, 3), value, np.uint8)


def fed_parts(world: World) -> list[list[dict]]:
    """The parts of the open message of each feed; none where it was the history alone."""
    messages = [fed[1][-1] for fed in world.model.fed]
    return [message["content"] if message["role"] == "user" else [] for message in messages]


def test_the_picture_and_the_sound_so_far_are_fed_while_the_user_speaks(world):
    world.dialogue.settings = Settings(system_prompt="Be brief.")
    world.dialogue.ask("one")
    world.idle()
    world.clock.sleep(1)
    history = world.model.fed[-1][1]
    world.dialogue.see(picture(1))
    began = world.clock.now()
    world.hear(1.0, 0.5)
    world.dialogue.see(picture(2))  # too late for this turn
    world.hear(10.5, 0.5)
    world.hear(0.7)
    world.idle()
    world.clock.sleep(1)
    (at, *_), *seconds = ahead = world.model.fed[1:-1]  # the last is of the history after the turn
    assert at - began < 0.2 and len(ahead) == 5 and all(done for _, _, done in ahead)
    assert all(messages[:-1] == history for _, messages, _ in ahead)
    (onset,), *parts = fed_parts(world)[1:-1]
    answered, said = world.model.requests[1].messages[-1]["content"]
    assert "unfinished" not in said and world.model.requests[1].messages[:-1] == history
    assert answered is onset and answered["image"][0, 0, 0] == 1
    for (at, *_), (seen, heard), second in zip(seconds, parts, range(8, 12), strict=True):
        pcm = heard["audio"]
        assert seen is onset and heard["unfinished"] and np.array_equal(pcm, said["audio"][: pcm.size])
        assert 0 < pcm.size - second * SAMPLE_RATE <= 2 * FRAME and at - began == pytest.approx(second, abs=0.1)
    assert fed_parts(world)[-1] == []


def test_the_end_of_the_turn_does_not_wait_for_what_is_fed(world):
    world.dialogue.settings = Settings(eager=False)
    world.model.feeding = 5.0
    world.dialogue.see(picture(1))
    world.say(1.0)
    ended = world.face.of("user")[-1][0]
    world.idle()
    assert world.model.fed[0][2] is False  # what was computed by then stays
    assert world.face.of("text")[0][0] - ended == pytest.approx(PREFILL + PER_TOKEN, abs=0.01)  # with the first sound


def test_an_answer_begun_at_a_pause_sees_the_same_picture_and_feeding_goes_on_after_it(world):
    world.dialogue.see(picture(1))
    world.hear(2.0, 0.5)
    world.dialogue.see(picture(2))
    world.hear(0.3)
    world.hear(6.5, 0.5)
    assert len(world.model.requests) == 1  # and nothing was told of it
    assert [[part["type"] for part in parts] for parts in fed_parts(world)] == [["image"], ["image", "audio"]]
    world.hear(0.7)
    world.idle()
    pictures = [request.messages[-1]["content"][0] for request in world.model.requests] + [parts[0] for parts in fed_parts(world)]
    assert len(pictures) == 4 and all(seen is pictures[0] for seen in pictures) and pictures[0]["image"][0, 0, 0] == 1


def test_feeding_waits_for_the_interrupted_answer_to_stop(world):
    world.dialogue.ask("Tell me a story.")
    world.until(lambda: world.face.of("speech"))
    world.clock.sleep(0.5)
    world.dialogue.see(picture(1))
    world.hear(9.0, 0.5)
    at, messages, _ = world.model.fed[0]
    stopped = [at for at, speaking in world.face.of("speaking") if not speaking][0]
    assert stopped <= at < stopped + 0.1
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]  # the answer as far as it was heard
    assert messages[1]["content"][0]["text"].endswith("—")
    assert [part["type"] for part in world.model.fed[1][1][-1]["content"]] == ["image", "audio"]
    world.hear(0.7)
    world.idle()
    assert world.model.requests[1].messages[:2] == messages[:2]


def test_without_preemption_feeding_waits_for_the_answer(world):
    world.dialogue.settings = Settings(preempt=False)
    world.dialogue.ask("Tell me a story.")
    world.until(lambda: world.face.of("speech"))
    world.dialogue.see(picture(1))
    world.hear(9.0, 0.5)
    spoken = [at for at, speaking in world.face.of("speaking") if not speaking][0]
    assert len(world.model.fed) >= 2 and all(at > spoken - 0.01 for at, *_ in world.model.fed)
    assert fed_parts(world)[0][0]["image"][0, 0, 0] == 1


def test_an_utterance_that_is_dropped_is_not_fed_again(world):
    world.dialogue.see(picture(1))
    world.hear(1.0, 0.5)
    world.dialogue.stop_listening()
    world.dialogue.ask("Hello?")
    world.idle()
    world.clock.sleep(1)
    assert [len(parts) for parts in fed_parts(world)] == [1, 0]


def test_words_typed_meanwhile_do_not_lose_what_is_being_said(world):
    world.dialogue.see(picture(1))
    world.hear(1.0, 0.5)
    world.dialogue.ask("One moment.")
    world.hear(8.5, 0.5)
    assert [part["type"] for part in fed_parts(world)[-1]] == ["image", "audio"]
    assert [message["role"] for message in world.model.fed[-1][1]] == ["user", "assistant", "user"]
    world.hear(0.7)
    world.idle()
    assert world.model.requests[1].messages[-1]["content"][0] is fed_parts(world)[-2][0]


@pytest.mark.parametrize("settings", [Settings(use_camera=False), Settings(image_max_age=0.5)])
def test_a_picture_that_is_not_wanted_is_not_fed(world, settings):
    world.dialogue.settings = settings
    world.dialogue.see(picture(1))
    world.clock.sleep(0.6)
    world.say(1.0)
    world.idle()
    assert all(part["type"] != "image" for parts in fed_parts(world) for part in parts)
    assert [part["type"] for part in world.model.requests[0].messages[-1]["content"]] == ["audio"]


def test_a_camera_that_comes_later_is_better_than_none(world):
    world.hear(1.0, 0.5)
    world.dialogue.see(picture(1))
    world.hear(0.7)
    world.idle()
    assert [part["type"] for part in world.model.requests[0].messages[-1]["content"]] == ["image", "audio"]


def test_a_picture_is_decoded_once(world):
    decoded = []

    def decode() -> np.ndarray:
        decoded.append(world.clock.now())
        return picture(1)

    world.dialogue.see(decode)
    world.say(10.0)
    world.idle()
    assert len(decoded) == 1 and decoded[0] < 0.3


def test_a_picture_that_cannot_be_decoded_is_told_once(world):
    def broken() -> np.ndarray:
        raise InputError("half a JPEG")

    world.dialogue.see(broken)
    world.say(8.5)
    world.idle()
    world.clock.sleep(1)
    assert [what for _, *what in world.face.of("bad")] == [["camera", "half a JPEG"]]
    assert [[part["type"] for part in parts] for parts in fed_parts(world)] == [["audio"], []]
    assert len(world.face.of("response")) == 1


def test_what_is_fed_is_as_short_as_the_turn_will_be():
    world = World(room=5)
    for number in range(3):
        world.dialogue.ask(f"question {number}")
        world.idle()
    world.dialogue.see(picture(1))
    world.say(8.5)
    world.idle()
    assert len(world.model.requests[-1].messages) == 5
    fed = [messages for _, messages, _ in world.model.fed if messages[-1]["role"] == "user"]
    assert [messages[:-1] for messages in fed] == [world.model.requests[-1].messages[:-1]] * 2
    assert world.remembered()[1] == f"assistant: {ANSWERS[1]}"
    world.close()


def test_a_dialogue_keeps_no_picture_after_its_turn(world):
    import gc
    import weakref

    taken = picture(1)
    kept = weakref.ref(taken)
    world.dialogue.see(taken)
    world.say(1.0)
    world.idle()
    world.dialogue.forget_picture()
    world.model.fed.clear()
    world.model.requests.clear()
    world.clock.sleep(1)
    del taken
    gc.collect()
    assert kept() is None

"""The microphone's path in simulated rooms: the robot alone starts no turn, and a person is heard while it speaks.

bench/echo.py has the rooms, and measures ten minutes in each.
"""

import numpy as np
import pytest

from bench.echo import ROOMS, aec, alone, double_talk, talk
from omni_ros.devices.echo import Echo
from omni_ros.devices.kalman import FRAME, KalmanFilter
from omni_ros.devices.reference import AHEAD, PLAYED_RATE, RATE, Reference
from omni_ros.errors import DeviceError

reason = "the echo canceller is in extra `devices`"


# ---- both streams beside each other --------------------------------------------------------------------------------


def lay_out(reference: Reference, seconds: float, ppm: float, lateness, silent: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    """Played blocks whose samples are the seconds of the loudspeaker's clock, taken frame by frame: float32 [frames, FRAME]."""
    puts = [(k * 0.02 / (1 + ppm * 1e-6), k) for k in range(round(seconds * 50))]
    puts = [(at, k) for at, k in puts if not silent[0] < at < silent[1]]
    at, frames, rng = 0.0, [], np.random.default_rng(0)
    for number in range(round(seconds * 50)):
        now = 0.013 + 0.02 * number
        while puts and puts[0][0] + at <= now:
            sent, k = puts.pop(0)
            reference.put((np.arange(480, dtype=np.float32) + 480 * k) / PLAYED_RATE, sent + at)
            at = max(0.0, at - 0.02, lateness(rng))
        frames.append(reference.take(FRAME, now))
    return np.array(frames)


def offset(frames: np.ndarray) -> np.ndarray:
    """How far the played sample in each frame lies behind the frame's place, in seconds."""
    places = (np.arange(len(frames)) + 0.5) * FRAME / RATE
    return places - frames.mean(axis=1)


@pytest.mark.parametrize("ppm", [0.0, 100.0, -100.0])
def test_what_is_played_stays_in_its_place_whatever_the_clocks_do(ppm):
    """From the second minute on within 3 ms, slowly, which the canceller follows; the clocks themselves move by 12 ms there."""
    reference = Reference()
    frames = lay_out(reference, 240.0, ppm, lambda rng: rng.exponential(0.003))
    assert reference.layouts == 1 and reference.drift * 1e6 == pytest.approx(ppm, abs=25)
    by_clock = offset(frames) + np.arange(len(frames)) * 0.02 * ppm * 1e-6  # against the loudspeaker's own clock
    whole = frames.all(axis=1)
    assert whole[200:-100].mean() > 0.99
    settled = by_clock[6000:-100][whole[6000:-100]]
    assert settled.max() - settled.min() < 0.003


def test_late_messages_leave_holes_and_shift_nothing():
    reference = Reference()
    frames = lay_out(reference, 60.0, 0.0, lambda rng: 0.15 if rng.random() < 0.01 else 0.0)
    whole = frames[200:][frames[200:].all(axis=1)]
    assert 0.5 * len(frames) < len(whole) < len(frames) - 200  # there were holes
    places = (np.arange(len(frames)) + 0.5) * FRAME / RATE
    assert reference.layouts == 1
    shifts = (places[200:] - frames[200:].mean(axis=1))[frames[200:].all(axis=1)]
    assert shifts.max() - shifts.min() < 0.001


def test_a_loudspeaker_that_goes_away_and_comes_back_is_found_again():
    reference = Reference()
    frames = lay_out(reference, 20.0, 0.0, lambda rng: 0.0, silent=(5.0, 8.0))
    assert reference.layouts == 2 and reference.in_step
    assert not frames[round(5.5 / 0.02) : round(8.0 / 0.02)].any()
    before, after = offset(frames)[200], offset(frames)[-50]
    assert before == pytest.approx(after, abs=0.002) and before == pytest.approx(AHEAD, abs=0.03)


# ---- cancelling ----------------------------------------------------------------------------------------------------


def test_the_kalman_filter_learns_a_path_and_is_not_led_astray_by_a_person():
    rng = np.random.default_rng(0)
    far = rng.normal(0, 0.1, 20 * RATE).astype(np.float32)
    path = np.zeros(3000, np.float32)
    path[[1000, 1500, 2900]] = 0.8, -0.3, 0.1
    echo = np.convolve(far, path)[: far.size].astype(np.float32)
    person = np.zeros_like(echo)
    person[10 * RATE : 15 * RATE] = rng.normal(0, 0.1, 5 * RATE)
    kalman = KalmanFilter()
    out = np.concatenate([kalman((echo + person)[i : i + FRAME], far[i : i + FRAME]) for i in range(0, far.size, FRAME)])
    left = out - person

    def reduction(begin: float, end: float) -> float:
        part = slice(round(begin * RATE), round(end * RATE))
        return 10 * np.log10(np.mean(echo[part] ** 2) / np.mean(left[part] ** 2))

    assert reduction(5, 10) > 25
    assert reduction(11, 15) > 12  # as loud as the echo, for five seconds
    assert reduction(16, 20) > 25


@pytest.mark.parametrize("room", ROOMS[:3], ids=lambda room: room.name)
def test_the_robot_alone_starts_no_turn(room):
    pytest.importorskip("pywebrtc_audio", reason=reason)
    starts, reduction, _ = alone(room, 0.75, aec())
    assert starts == 0 and reduction > 30


def test_without_a_canceller_it_would():
    assert alone(ROOMS[1], 0.5, Echo("none"))[0] > 0


def test_a_person_is_heard_while_the_robot_speaks():
    """10 dB below the robot's voice."""
    pytest.importorskip("pywebrtc_audio", reason=reason)
    heard, said, share, false = double_talk(ROOMS[0], 40.0, aec(), first=12.0)
    assert said >= 5 and heard == said and share > 0.8 and false == 0


def test_mute_hears_nothing_while_something_is_played_and_everything_else():
    echo, rng = Echo("mute"), np.random.default_rng(0)
    noise = [rng.normal(0, 1e-3, FRAME).astype(np.float32) for _ in range(200)]
    loud = [rng.normal(0, 0.1, FRAME).astype(np.float32) for _ in range(100)]
    silence = np.zeros(FRAME, np.float32)
    for near in noise[:100]:
        assert echo(near, silence) is near
    muted = np.array([echo(near, near) for near in loud])
    assert 3e-4 < np.sqrt(np.mean(muted**2)) < 3e-3  # the room's own noise, not digital silence
    after = np.array([echo(near, silence) for near in loud])
    assert np.abs(after[:20]).max() < 0.02 and np.array_equal(after[30:], np.array(loud[30:]))


def test_what_is_played_but_unknown_to_the_canceller_mutes():
    """A loudspeaker that was started again: its delay is not known yet."""
    pytest.importorskip("pywebrtc_audio", reason=reason)
    echo, far = aec(), talk(3.0, np.random.default_rng(0))[-FRAME * 50 :].reshape(-1, FRAME)
    out = np.array([echo(near, np.zeros(FRAME, np.float32), blind=True) for near in far])
    assert np.abs(out).max() < 0.1 * np.abs(far).max()


def test_modes_and_packages_that_do_not_exist_are_errors(monkeypatch):
    with pytest.raises(DeviceError, match="none, aec, mute"):
        Echo("on")
    monkeypatch.setitem(__import__("sys").modules, "pywebrtc_audio", None)
    with pytest.raises(DeviceError, match="pip install pywebrtc-audio"):
        Echo("aec")
    Echo("mute")

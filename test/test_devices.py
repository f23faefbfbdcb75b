"""Microphone and loudspeaker without hardware, on simulated time: files and scripted devices in place of sound cards."""

import math
import sys
import types
import wave
from pathlib import Path

import numpy as np
import pytest
from simulated_clock import SimulatedClock

from omni_ros.devices import listing, portaudio
from omni_ros.devices.device import check_sink, check_source, open_sink, open_source
from omni_ros.devices.echo import Echo
from omni_ros.devices.paced import read_wav
from omni_ros.devices.player import BLOCK, Player
from omni_ros.devices.reconnect import PAUSES
from omni_ros.devices.recorder import Recorder
from omni_ros.devices.resampler import Resampler
from omni_ros.devices.sound_thread import STALLED
from omni_ros.devices.speech_queue import CONCEAL, LATE, RAMP, SpeechQueue
from omni_ros.errors import DeviceError

RATE = 24000


def tone(seconds: float, rate: int, hertz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def decibel(value: float) -> float:
    return 20 * math.log10(value + 1e-12)


def raised(error: Exception) -> None:
    raise error


# ---- resampling ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source,target", [(24000, 48000), (24000, 44100), (48000, 16000), (44100, 16000), (8000, 16000)])
def test_chunks_of_any_size_give_what_one_gives(source, target):
    """And that is the tone, 90 dB above what is wrong with it: no clicks."""
    pcm = tone(1.0, source)
    whole = Resampler(source, target)(pcm)
    resampler, rng, pieces = Resampler(source, target), np.random.default_rng(0), []
    while pcm.size:
        size = rng.integers(1, 900)
        pieces.append(resampler(pcm[:size]))
        pcm = pcm[size:]
    pieces = np.concatenate(pieces)
    assert pieces.size == whole.size and np.abs(pieces - whole).max() < 1e-5
    wanted = tone(1.0, target)[: whole.size]
    assert decibel(np.abs(whole - wanted)[300:-300].max()) < -90


def test_what_the_lower_rate_cannot_hold_is_not_folded_into_it():
    folded = Resampler(48000, 16000)(tone(0.5, 48000, 11000.0))
    assert decibel(np.abs(folded[300:-300]).max()) < -90


def test_the_ratio_may_change_without_a_click():
    resampler, pcm, out = Resampler(24000, 16000), tone(2.0, 24000, 300.0), []
    for number, start in enumerate(range(0, pcm.size, 480)):
        resampler.drift = 2e-4 * (number % 3 - 1)
        out.append(resampler(pcm[start : start + 480]))
    smooth = np.concatenate(out)[400:]
    assert np.abs(np.diff(smooth, 2)).max() < 1.1 * 0.5 * (2 * math.pi * 300 / 16000) ** 2  # as curved as the tone, no more


def test_a_drift_shortens_the_stream_by_as_much():
    resampler = Resampler(24000, 16000)
    resampler.drift = 1e-4
    count = sum(resampler(np.zeros(480, np.float32)).size for _ in range(5000))
    assert count == pytest.approx(5000 * 320 * (1 - 1e-4), abs=40)


# ---- what is played next ------------------------------------------------------------------------------------------


def test_speech_is_played_as_it_is_with_silence_around_it():
    queue, pcm = SpeechQueue(), tone(0.1, RATE)
    assert not queue.take(BLOCK).any()
    queue.push(pcm, 0.0)
    played = np.concatenate([queue.take(BLOCK) for _ in range(6)])
    assert np.array_equal(played[: pcm.size], pcm)
    assert not played[pcm.size + CONCEAL :].any()


def jumps(pcm: np.ndarray) -> float:
    return float(np.abs(np.diff(pcm)).max())


def test_a_voice_that_runs_dry_dies_away_and_comes_back_without_a_click_and_is_counted():
    queue, pcm = SpeechQueue(), tone(0.2, RATE)
    queue.push(pcm[:1500], 0.0)
    played = [queue.take(BLOCK) for _ in range(6)]
    assert queue.underruns == 0  # it may have been the end
    queue.push(pcm[1500:], 0.12)
    played += [queue.take(BLOCK) for _ in range(6)]
    assert queue.underruns == 1
    assert jumps(np.concatenate(played)) < 1.5 * jumps(pcm)


def test_a_stop_drops_what_waits_within_5_ms():
    queue = SpeechQueue()
    queue.push(tone(0.3, RATE), 0.0)
    before = queue.take(BLOCK)
    queue.stop(0.02)
    after = np.concatenate([queue.take(BLOCK) for _ in range(10)])
    assert after[: RAMP // 2].any() and not after[RAMP:].any()
    assert jumps(np.concatenate([before, after])) < 1.5 * jumps(tone(0.3, RATE))


@pytest.mark.parametrize("late,whole", [(0.06, True), (LATE + 0.2, False)])
def test_the_end_of_an_answer_is_played_though_it_is_late_but_not_much_later(late, whole):
    """The node says that it has ended when it should have been played; the loudspeaker is some milliseconds behind."""
    queue = SpeechQueue()
    queue.push(tone(1.0, RATE), 0.0)
    for _ in range(round((1.0 - late) * 50)):
        queue.take(BLOCK)
    queue.stop(1.0)
    assert queue.seconds == pytest.approx(late if whole else 0.0, abs=0.021)


def test_a_loudspeaker_that_takes_less_than_it_should_falls_behind_by_half_a_second_at_most():
    queue, played = SpeechQueue(), []
    ramp = np.linspace(0.1, 0.9, 10 * RATE, dtype=np.float32)  # its value tells the time
    for number in range(300):  # 20 ms of each 30 ms
        now = 0.03 * number
        if number % 2 == 0:
            queue.push(ramp[round(now * RATE) : round((now + 0.06) * RATE)], now)
        queue.catch_up(now)
        played.append(queue.take(BLOCK))
        behind = now - (played[-1].max() - 0.1) / 0.8 * 10
        assert number < 10 or behind < LATE + 0.1 or played[-1][-1] == 0
    assert jumps(np.concatenate(played)) < 0.01
    assert queue.seconds < LATE + 0.1


def test_a_gain_is_reached_in_5_ms_and_counts_for_what_waits():
    queue = SpeechQueue()
    queue.push(np.full(RATE, 0.5, np.float32), 0.0)
    queue.take(BLOCK)
    queue.set_gain(0.2)
    ducked = queue.take(BLOCK)
    assert np.allclose(ducked[RAMP:], 0.1) and jumps(ducked) < 0.01
    queue.set_gain(0.0)
    assert not queue.take(BLOCK)[RAMP:].any() and queue.seconds == 0
    queue.push(np.full(BLOCK, 0.5, np.float32), 0.1)  # of the same answer, still under way
    queue.set_gain(1.0)
    assert not queue.take(BLOCK).any()
    queue.push(np.full(BLOCK, 0.5, np.float32), 0.2)
    assert np.allclose(queue.take(BLOCK)[RAMP:], 0.5)


def test_an_answer_that_is_held_back_while_it_is_ducked_has_not_run_dry():
    queue = SpeechQueue()
    queue.push(tone(0.02, RATE), 0.0)
    queue.set_gain(0.2)
    queue.take(BLOCK)
    queue.take(BLOCK)
    queue.push(tone(0.02, RATE), 1.0)
    assert queue.underruns == 0


# ---- devices ------------------------------------------------------------------------------------------------------


def write_wav(path: Path, pcm: np.ndarray, rate: int) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(pcm.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((pcm * 32767).round().astype("<i2").tobytes())


@pytest.mark.parametrize("rate,channels", [(16000, 1), (44100, 2), (48000, 6)])
def test_a_recording_is_heard_at_its_pace_as_16_khz_mono(tmp_path, rate, channels):
    write_wav(tmp_path / "in.wav", np.repeat(tone(1.0, rate)[:, None], channels, axis=1), rate)
    clock, heard = SimulatedClock(), []
    source = f"file:{tmp_path / 'in.wav'}"
    recorder = Recorder(
        lambda: open_source(source, 0, 0, clock), Echo("none"), on_pcm=heard.append, on_failure=raised, clock=clock
    )
    clock.sleep(0.5)
    assert 0.4 < len(heard) * 0.02 <= 0.5
    clock.sleep(1.5)
    assert recorder.facts()["device"] == f"{rate} Hz, {channels} channels"
    recorder.close()
    pcm = np.concatenate(heard)
    assert decibel(np.abs(pcm[:15900] - tone(1.0, 16000)[:15900])[300:].max()) < -80
    assert not pcm[16200:].any()


@pytest.mark.parametrize("rate,channels", [(24000, 1), (44100, 2), (48000, 2)])
def test_speech_is_played_at_any_rate_and_told_as_it_was(tmp_path, rate, channels):
    clock, played = SimulatedClock(), []
    sink = f"file:{tmp_path / 'out.wav'}"
    player = Player(lambda: open_sink(sink, rate, channels, clock), on_played=played.append, on_failure=raised, clock=clock)
    pcm = tone(1.0, RATE)
    clock.sleep(0.5)
    for start in range(0, pcm.size, 1440):
        player.push(pcm[start : start + 1440])
        clock.sleep(0.05)
    clock.sleep(0.5)
    player.stop()
    clock.sleep(0.2)
    player.close()
    told = np.concatenate(played)
    begin = np.flatnonzero(told)[0] - 1  # the tone begins with a zero
    assert np.array_equal(told[begin : begin + pcm.size], pcm)
    file, file_rate = read_wav(tmp_path / "out.wav")
    assert (file_rate, file.shape[1]) == (rate, channels)
    assert len(file) / rate == pytest.approx(told.size / RATE, abs=0.03)
    voice = file[:, 0][round(begin / RATE * rate) :][: round(0.99 * rate)]
    assert decibel(np.abs(voice - tone(1.0, rate)[: voice.size])[300:].max()) < -80
    assert player.facts()["device underflows"] == player.facts()["speech underruns"] == 0


class Card:
    """A sound card of either direction that can be pulled out, with or without saying so."""

    rate, channels = 48000, 2

    def __init__(self, clock: SimulatedClock) -> None:
        self._clock = clock
        self._from = clock.now()
        self._moved = 0
        self.overflows = self.underflows = 0
        self.written: list[np.ndarray] = []
        self.closed = False
        self.state = "plugged"

    def _frames(self) -> int:
        if self.state == "failed":
            raise DeviceError("device 'Card' has failed: Input/output error")
        if self.state == "frozen":
            return 0
        return round((self._clock.now() - self._from) * self.rate) - self._moved

    def available(self) -> int:
        return self._frames()

    def room(self) -> int:
        return 0 if self.state == "frozen" else self._frames() + 2880

    def read(self, frames: int) -> np.ndarray:
        self._moved += frames
        return np.full((frames, 2), 0.25, np.float32)

    def write(self, pcm: np.ndarray) -> None:
        self._moved += len(pcm)
        self.written.append(pcm)

    def close(self) -> None:
        self.closed = True


class Slot:
    """Where cards are plugged in."""

    def __init__(self, clock: SimulatedClock) -> None:
        self._clock = clock
        self.cards: list[Card] = []
        self.empty = False

    def open(self) -> Card:
        if self.empty:
            raise DeviceError("there is no device 'Card'")
        self.cards.append(Card(self._clock))
        return self.cards[-1]


@pytest.mark.parametrize("how", ["failed", "frozen"])
def test_a_microphone_is_pulled_out_and_comes_back(how):
    clock, heard = SimulatedClock(), []
    slot = Slot(clock)
    recorder = Recorder(slot.open, Echo("none"), on_pcm=heard.append, on_failure=raised, clock=clock)
    clock.sleep(1.0)
    assert len(heard) >= 48 and recorder.problem == ""
    slot.cards[0].state, slot.empty = how, True
    clock.sleep(STALLED + 1.0)
    assert slot.cards[0].closed and "there is no device" in recorder.problem
    count = len(heard)
    clock.sleep(20.0)
    assert len(heard) == count
    slot.empty = False
    clock.sleep(PAUSES[-1] + 1.0)
    assert recorder.problem == "" and len(slot.cards) == 2 and len(heard) >= count + 45
    recorder.close()
    assert slot.cards[1].closed


@pytest.mark.parametrize("how", ["failed", "frozen"])
def test_a_loudspeaker_is_pulled_out_while_it_speaks_and_goes_on_where_it_would_have_been(how):
    clock, played = SimulatedClock(), []
    slot = Slot(clock)
    player = Player(slot.open, on_played=played.append, on_failure=raised, clock=clock)
    clock.sleep(0.1)
    ramp = np.linspace(0.1, 0.9, 12 * RATE, dtype=np.float32)  # its value tells the time
    for number, start in enumerate(range(0, ramp.size, 1200)):
        player.push(ramp[start : start + 1200])
        clock.sleep(0.05)
        if number == 20:
            slot.cards[0].state, slot.empty = how, True
        if number == 70:
            assert player.problem
            slot.empty = False
    player.stop()
    clock.sleep(0.5)
    player.close()
    assert player.problem == "" and len(slot.cards) == 2
    first = np.concatenate(slot.cards[1].written)[:, 0]
    first = first[np.abs(first) > 0.05]
    assert first[-2000] == pytest.approx(0.9, abs=0.02)  # to the end,
    late = 1 - (slot.cards[1]._from - 0.1) / 12 - (0.9 - first[500]) / 0.8  # and on time
    assert abs(late) * 12 < 0.3


def test_a_device_that_is_not_there_at_the_start_is_waited_for():
    clock, heard = SimulatedClock(), []
    slot = Slot(clock)
    slot.empty = True
    recorder = Recorder(slot.open, Echo("none"), on_pcm=heard.append, on_failure=raised, clock=clock)
    clock.sleep(3.0)
    assert recorder.problem and not heard
    slot.empty = False
    clock.sleep(3.0)
    recorder.close()
    assert heard


# ---- names, and what is missing -----------------------------------------------------------------------------------


class FakePortAudio(types.ModuleType):
    class PortAudioError(Exception):
        pass

    def __init__(self, devices: list[dict]) -> None:
        super().__init__("sounddevice")
        self.default = types.SimpleNamespace(device=[2, 0])
        self._devices = devices

    def _terminate(self) -> None:
        self.looked = False

    def _initialize(self) -> None:
        self.looked = True

    def query_devices(self) -> list[dict]:
        assert self.looked
        return self._devices


CARDS = [
    {"index": number, "name": name, "max_input_channels": i, "max_output_channels": o, "default_samplerate": 48000.0}
    for number, (name, i, o) in enumerate([("HDA Intel", 2, 2), ("USB Speakerphone", 1, 2), ("USB Camera", 2, 0)])
]


@pytest.fixture
def cards(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", FakePortAudio(CARDS))


@pytest.mark.parametrize(
    "name,direction,number",
    [("default", "input", 2), ("default", "output", 0), ("1", "input", 1), ("speakerphone", "output", 1), ("USB", "output", 1)],
)
def test_devices_are_found_by_number_name_and_part_of_it(cards, name, direction, number):
    assert portaudio.find(name, direction)["index"] == number


@pytest.mark.parametrize(
    "name,direction,problem",
    [
        ("USB", "input", "several input devices are called 'USB': 1: USB Speakerphone; 2: USB Camera"),
        ("2", "output", "there is no output device '2': 0: HDA Intel; 1: USB Speakerphone"),
        ("Jabra", "input", "there is no input device 'Jabra'"),
    ],
)
def test_a_name_that_fits_none_or_several_is_an_error_that_lists_them(cards, name, direction, problem):
    with pytest.raises(DeviceError) as error:
        portaudio.find(name, direction)
    assert problem in str(error.value)


def test_the_list_command(cards, capsys):
    assert listing.main() == 0
    out = capsys.readouterr().out
    assert [line.split()[:4] for line in out.splitlines()[1:4]] == [
        ["0", "2", "2", "48000"], ["1", "1", "2", "48000"], ["2", "2", "0", "48000"]
    ]  # fmt: skip


def test_without_the_package_the_error_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert listing.main() == 1
    said = capsys.readouterr().err
    assert "pip install sounddevice" in said and "apt install libportaudio2" in said
    with pytest.raises(DeviceError, match="sounddevice is not installed"):
        check_sink("default")


def test_files_that_cannot_be_used_are_named(tmp_path):
    (tmp_path / "text.wav").write_text("no sound")
    for name in ("missing.wav", "text.wav"):
        with pytest.raises(DeviceError, match=name):
            check_source(f"file:{tmp_path / name}")
    with pytest.raises(DeviceError, match="not a folder"):
        check_sink(f"file:{tmp_path / 'nowhere' / 'out.wav'}")
    check_sink(f"file:{tmp_path / 'out.wav'}")
    check_source("null")

"""Media files as an attacker would write them: no protocol, no second file, nothing that blocks, nothing that segfaults."""

import os
import socket
import struct
import threading
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file
from test_preprocess_image import CONFIG

from omni_ros.errors import InputError, PromptTooLongError
from omni_ros.preprocess import media
from omni_ros.preprocess.audio import load_audio, load_features
from omni_ros.preprocess.image import image_patches, load_image
from omni_ros.preprocess.video import load_video, sample_indices, video_patches

SECOND = 16000
TONE = 0.5 * np.sin(2 * np.pi * 440 * np.arange(SECOND) / SECOND)


def wav(path: Path, samples: np.ndarray, rate: int = SECOND, *, kind: int | None = None) -> Path:
    """A WAV file of samples [n, channels], int16 or float32, with the plain 16-byte header."""
    channels, size = samples.shape[1], samples.dtype.itemsize
    kind = kind or (3 if samples.dtype.kind == "f" else 1)
    block = channels * size & 0xFFFF
    header = struct.pack("<IHHIIHH", 16, kind, channels, rate, rate * block & 0xFFFFFFFF, block, 8 * size)
    data = samples.tobytes()
    path.write_bytes(
        b"RIFF" + struct.pack("<I", 36 + len(data)) + b"WAVEfmt " + header + b"data" + struct.pack("<I", len(data)) + data
    )
    return path


def int16(samples: np.ndarray) -> np.ndarray:
    return (samples * 32767).astype(np.int16)


def encode(path: Path, codec: str, layout: str, rate: int = 48000) -> Path:
    """One second of the tone in every channel."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        channels = av.AudioLayout(layout).nb_channels
        packed = np.repeat(int16(TONE)[:, None], channels, axis=1).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(packed, format="s16", layout=layout)
        frame.sample_rate = SECOND
        for part in av.AudioResampler(format=stream.format, layout=layout, rate=rate).resample(frame):
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return path


# ---- channels and rates ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("channels", [*range(1, 18), 24, 32, 48, 63, 64])
def test_every_number_of_channels_is_mixed(tmp_path, channels):
    """The mean: only the last channel sounds, so the mix is that much quieter."""
    samples = np.zeros((SECOND, channels), np.int16)
    samples[:, -1] = int16(TONE)
    pcm = load_audio(wav(tmp_path / "many.wav", samples))
    np.testing.assert_allclose(pcm, TONE / channels, atol=1e-4)


@pytest.mark.parametrize("channels", [65, 100, 1000, 65535])
def test_more_channels_are_refused(tmp_path, channels):
    with pytest.raises(InputError, match=r"many\.wav"):
        load_audio(wav(tmp_path / "many.wav", np.zeros((50, channels), np.int16)))


@pytest.mark.parametrize(
    "name,codec,layout",
    [
        *(("a.flac", "flac", layout) for layout in ("mono", "stereo", "2.1", "4.0", "5.0", "5.1", "6.1", "7.1")),
        *(("a.m4a", "aac", layout) for layout in ("5.1", "7.1")),
        *(("a.ogg", "libopus", layout) for layout in ("5.1", "7.1")),
    ],
)
def test_surround_sound(tmp_path, name, codec, layout):
    """7.1, eight planes, was a segmentation fault."""
    pcm = load_audio(encode(tmp_path / name, codec, layout))
    spectrum = np.abs(np.fft.rfft(pcm[1000 : 1000 + SECOND // 2]))
    assert spectrum.argmax() == 220 and 4 * spectrum[220] / SECOND == pytest.approx(0.5, rel=0.2)


def test_mono_at_the_rate_that_is_wanted(tmp_path):
    """Nothing to resample: the resampler then answers the end of the stream with no frame at all."""
    for name, codec in (("a.m4a", "aac"), ("a.flac", "flac")):
        assert len(load_audio(encode(tmp_path / name, codec, "mono", rate=SECOND))) >= SECOND
    np.testing.assert_array_equal(load_audio(wav(tmp_path / "a.wav", TONE[:, None].astype(np.float32))), TONE.astype(np.float32))


@pytest.mark.parametrize("rate", [1, 2, 100, 7999, 384001, 2**31 - 1])
def test_impossible_rate(tmp_path, rate):
    with pytest.raises(InputError, match=r"slow\.wav"):
        load_audio(wav(tmp_path / "slow.wav", np.zeros((SECOND, 1), np.int16), rate))


@pytest.mark.parametrize("rate", [8000, 11025, 44100, 192000, 384000])
def test_possible_rates(tmp_path, rate):
    assert len(load_audio(wav(tmp_path / "a.wav", np.zeros((rate, 1), np.int16), rate))) == pytest.approx(SECOND, abs=200)


@pytest.mark.parametrize("value,message", [(1e30, "full scale"), (-1e30, "full scale"), (np.nan, "finite"), (np.inf, "finite")])
def test_samples_out_of_range(tmp_path, value, message):
    samples = np.zeros((SECOND, 1), np.float32)
    samples[5000:5010] = value
    with pytest.raises(InputError, match=rf"wild\.wav.*{message}"):
        load_audio(wav(tmp_path / "wild.wav", samples))


def test_tags_that_are_not_utf8_do_not_matter(tmp_path):
    """Those of old programs are Latin-1, and PyAV refuses the file for them unless told not to."""
    path = wav(tmp_path / "a.wav", int16(TONE)[:, None])
    plain = load_audio(path)
    title = b"LIST" + struct.pack("<I", 18) + b"INFOINAM" + struct.pack("<I", 6) + b"caf\xe9 \0"
    path.write_bytes(path.read_bytes() + title)
    np.testing.assert_array_equal(load_audio(path), plain)


# ---- length ---------------------------------------------------------------------------------------------------------
def test_longest_sound(tmp_path):
    path = wav(tmp_path / "long.wav", int16(np.tile(TONE, 3))[:, None])
    assert len(load_audio(path, max_seconds=3)) == 3 * SECOND
    with pytest.raises(PromptTooLongError, match=r"long\.wav.*longer than 2\.5 s"):
        load_audio(path, max_seconds=2.5)


def test_length_is_counted_not_believed(tmp_path):
    """A header that claims nearly no samples, and one that claims four billion."""
    path = wav(tmp_path / "a.wav", int16(np.tile(TONE, 3))[:, None])
    whole = bytearray(path.read_bytes())
    for claim in (0xFFFFFFFF, 0x7FFFFFFE):
        whole[40:44] = struct.pack("<I", claim)
        path.write_bytes(whole)
        assert len(load_audio(path)) == pytest.approx(3 * SECOND, abs=10)
        with pytest.raises(PromptTooLongError):
            load_audio(path, max_seconds=2)


# ---- addresses, lists, and things that are no files -----------------------------------------------------------------
@pytest.fixture
def listener():
    """A TCP server on this machine that must never be called: yields its port, then checks."""
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(0.2)
    calls, stop = [], threading.Event()

    def accept() -> None:
        while not stop.is_set():
            try:
                connection, _ = server.accept()
            except TimeoutError:
                continue
            calls.append(connection.recv(200))
            connection.close()

    thread = threading.Thread(target=accept)
    thread.start()
    yield server.getsockname()[1]
    stop.set()
    thread.join()
    server.close()
    assert not calls


LOADERS = {
    "audio": load_audio,
    "features": load_features,
    "image": load_image,
    "patches": lambda path: image_patches(path, CONFIG),
    "video": lambda path: load_video(path, 2.0, CONFIG),
}


@pytest.mark.parametrize("loader", LOADERS)
def test_addresses_are_not_opened(loader, listener, tmp_path, monkeypatch):
    wav(tmp_path / "a.wav", int16(TONE)[:, None])
    monkeypatch.chdir(tmp_path)
    for address in (
        f"http://127.0.0.1:{listener}/a.wav",
        f"http:/127.0.0.1:{listener}/a.wav",
        f"tcp://127.0.0.1:{listener}",
        f"cache:http://127.0.0.1:{listener}/a.wav",
        f"hls+http://127.0.0.1:{listener}/a.m3u8",
        "concat:a.wav|a.wav",
        "file:a.wav",
        "subfile,,start,0,end,0,,:a.wav",
        "data:audio/wav;base64,UklGRg==",
        "pipe:0",
        "-",
    ):
        with pytest.raises(InputError):
            LOADERS[loader](address)
        with pytest.raises(InputError):
            LOADERS[loader](Path(address))


def playlists(port: int, neighbour: Path) -> dict[str, str]:
    """Files that name other files: what FFmpeg finds in them by their content or their extension."""
    web = f"http://127.0.0.1:{port}/a.wav"
    return {
        "a.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{web}\n#EXT-X-ENDLIST\n",
        "local.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{neighbour.name}\n#EXT-X-ENDLIST\n",
        "a.ffconcat": f"ffconcat version 1.0\nfile {neighbour.name}\nfile '{web}'\n",
        "a.wav": f"ffconcat version 1.0\nfile {neighbour.name}\n",  # by content, whatever it is called
        "a.mpd": f"<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011' type='static' "
        f"profiles='urn:mpeg:dash:profile:isoff-on-demand:2011'><Period><AdaptationSet><Representation id='1' bandwidth='1'>"
        f"<BaseURL>{web}</BaseURL></Representation></AdaptationSet></Period></MPD>",
        "a.sdp": f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio {port} RTP/AVP 0\n",
        "a.ram": f"{web}\n",
        "a.asx": f"<asx version='3.0'><entry><ref href='{web}'/></entry></asx>",
        "a.svg": f"<svg xmlns='http://www.w3.org/2000/svg'><image href='{web}'/></svg>",
        "frame%d.png": "",
    }


@pytest.mark.parametrize("loader", LOADERS)
def test_files_that_name_other_files(loader, listener, tmp_path, monkeypatch):
    neighbour = wav(tmp_path / "neighbour.wav", int16(TONE)[:, None])
    Image.new("RGB", (32, 32)).save(tmp_path / "frame1.png")
    monkeypatch.chdir(tmp_path)
    for name, content in playlists(listener, neighbour).items():
        if content:
            Path(name).write_text(content)
        with pytest.raises(InputError, match=name):
            LOADERS[loader](name)


def test_a_film_whose_sound_is_elsewhere(tmp_path, listener):
    """QuickTime's data references: the samples are in the file that the reference names."""
    encode(tmp_path / "a.m4a", "aac", "mono")
    whole = (tmp_path / "a.m4a").read_bytes()
    here = struct.pack(">I", 12) + b"url \x00\x00\x00\x01"
    assert whole.count(here) == 1
    target = f"http://127.0.0.1:{listener}/a.aac".encode() + b"\0"
    there = struct.pack(">I", 12 + len(target)) + b"url \x00\x00\x00\x00" + target
    longer, place = len(target), whole.index(here)
    changed = bytearray(whole.replace(here, there))
    for box in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):  # each of them holds the reference and grows with it
        at = whole.rindex(box, 0, place) - 4
        changed[at : at + 4] = struct.pack(">I", struct.unpack(">I", whole[at : at + 4])[0] + longer)
    (tmp_path / "b.m4a").write_bytes(changed)
    try:
        load_audio(tmp_path / "b.m4a")  # from here or not at all
    except InputError:
        pass


def test_a_second_file_is_refused_whatever_the_format(tmp_path, monkeypatch):
    """Behind the list of containers stands the callback that opens files: it opens none."""
    monkeypatch.setattr(media, "CONTAINERS", f"{media.CONTAINERS},concat,hls")
    wav(tmp_path / "neighbour.wav", int16(TONE)[:, None])
    (tmp_path / "a.wav").write_text("ffconcat version 1.0\nfile neighbour.wav\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"a\.wav"):
        load_audio("a.wav")


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "socket", "dangling", "loop"])
def test_what_is_no_regular_file(loader, kind, tmp_path):
    path = tmp_path / "thing.wav"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(str(path))
    else:
        path.symlink_to("nowhere" if kind == "dangling" else path)
    with pytest.raises(InputError, match=r"thing\.wav"):
        LOADERS[loader](path)


def test_a_link_to_a_file_is_that_file(tmp_path):
    (tmp_path / "link").symlink_to(wav(tmp_path / "a.wav", int16(TONE)[:, None]))
    assert len(load_audio(tmp_path / "link")) == SECOND


def test_codec_that_is_not_listed_is_named(tmp_path):
    path = encode(tmp_path / "a.mkv", "ac3", "stereo")
    with pytest.raises(InputError, match=r"a\.mkv.*ac3.*convert it"):
        load_audio(path)


def test_container_that_is_not_listed(tmp_path):
    path = encode(tmp_path / "a.voc", "pcm_u8", "mono", rate=SECOND)
    with pytest.raises(InputError, match=r"a\.voc"):
        load_audio(path)


@pytest.mark.parametrize("name,codec", [("a.wav", "pcm_s24le"), ("a.aiff", "pcm_s16be"), ("a.au", "pcm_mulaw")])
def test_other_files_of_everyday(tmp_path, name, codec):
    assert len(load_audio(encode(tmp_path / name, codec, "stereo"))) == pytest.approx(SECOND, rel=0.05)


def test_sound_of_a_film_with_a_cover_picture(tmp_path):
    """The picture is of a codec that is not decoded here; the sound is."""
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("pcm_s16le", rate=SECOND, layout="mono")
        picture = container.add_stream("ffv1", rate=1, width=64, height=64, pix_fmt="yuv420p")
        container.mux(picture.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        frame = av.AudioFrame.from_ndarray(int16(TONE)[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts = SECOND, 0
        for stream, value in ((sound, frame), (sound, None), (picture, None)):
            container.mux(stream.encode(value))
    np.testing.assert_allclose(load_audio(path), TONE, atol=1e-4)
    with pytest.raises(InputError, match="ffv1"):
        load_video(path, 2.0, CONFIG)


@pytest.mark.parametrize("rate", [Fraction(73, 10), Fraction(24000, 1001), Fraction(1), Fraction(120)])
def test_odd_frame_rates_and_no_sound(tmp_path, rate):
    """As many frames as transformers samples; a film without sound is no sound, said in one sentence."""
    path = tmp_path / "odd.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate, width=64, height=64, pix_fmt="yuv420p")
        for i in range(31):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((64, 64, 3), 8 * i, np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    frames = load_video(path, 2.0, CONFIG)
    assert len(frames) == len(sample_indices(31, rate, 2.0, CONFIG))
    patches, grid, seconds = video_patches(frames, 2.0, CONFIG)
    assert grid[0] == len(frames) // 2 and seconds == 1.0 and len(patches) == grid.prod()
    with pytest.raises(InputError, match=r"odd\.mkv: has no audio stream"):
        load_audio(path)


def test_more_video_than_the_prompt_has_rows_for(tmp_path):
    """Said from the header: no frame is decoded."""
    path = tmp_path / "long.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10, width=64, height=64, pix_fmt="yuv420p")
        for _ in range(100):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    rows = 10 * 144  # 20 frames of 384 x 384 pixels
    assert load_video(path, 2.0, CONFIG, rows).shape == (20, 384, 384, 3)
    with pytest.raises(PromptTooLongError, match=rf"long\.mp4 takes {rows} rows of the prompt.*{rows - 1}"):
        load_video(path, 2.0, CONFIG, rows - 1)
    with pytest.raises(PromptTooLongError, match="video takes"):
        video_patches(np.zeros((20, 384, 384, 3), np.uint8), 2.0, CONFIG, rows - 1)


def test_features_longer_than_the_prompt(tmp_path):
    save_file({"input_features": np.zeros((128, 500), np.float32)}, tmp_path / "mel.safetensors")
    assert load_features(tmp_path / "mel.safetensors", 5.0).shape == (128, 500)
    with pytest.raises(PromptTooLongError, match=r"mel\.safetensors"):
        load_features(tmp_path / "mel.safetensors", 4.9)

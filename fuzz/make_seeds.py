"""Write fuzz/seeds: one small file of every kind that is read. Committed, since encoders differ from release to release.

python -m fuzz.make_seeds
"""

from pathlib import Path

import av
import numpy as np
from PIL import Image
from safetensors.numpy import save_file

SEEDS = Path(__file__).parent / "seeds"
RATE = 8000


def sound(path: Path, codec: str, layout: str = "mono", rate: int = RATE) -> None:
    """0.3 s of two tones."""
    t = np.arange(int(0.3 * rate)) / rate
    mono = (8000 * (np.sin(2 * np.pi * 300 * t) + np.sin(2 * np.pi * 1700 * t))).astype(np.int16)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        packed = np.repeat(mono[:, None], av.AudioLayout(layout).nb_channels, axis=1).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(packed, format="s16", layout=layout)
        frame.sample_rate = rate
        for part in av.AudioResampler(format=stream.format, layout=layout, rate=rate).resample(frame):
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))


def picture() -> Image.Image:
    y, x = np.mgrid[:24, :32]
    return Image.fromarray(np.stack([x * 8, y * 10, 255 * (x > y)], axis=-1).astype(np.uint8))


def film(path: Path, codec: str, sound_codec: str | None = None) -> None:
    """Six frames of 64 x 48 pixels."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=5, width=64, height=48, pix_fmt="yuvj420p" if codec == "mjpeg" else "yuv420p")
        second = container.add_stream(sound_codec, rate=48000, layout="mono") if sound_codec else None
        for i in range(6):
            image = picture().resize((64, 48)).rotate(20 * i)
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode(None))
        if second:
            frame = av.AudioFrame(format=second.format.name, layout="mono", samples=1024)
            for plane in frame.planes:
                plane.update(bytes(plane.buffer_size))
            frame.sample_rate = 48000
            container.mux(second.encode(frame))
            container.mux(second.encode(None))


def main() -> None:
    for name in ("sounds", "pictures", "videos"):
        (SEEDS / name).mkdir(parents=True, exist_ok=True)
    sounds, pictures, videos = SEEDS / "sounds", SEEDS / "pictures", SEEDS / "videos"
    sound(sounds / "int16.wav", "pcm_s16le")
    sound(sounds / "float.wav", "pcm_f32le")
    sound(sounds / "adpcm.wav", "adpcm_ms")
    sound(sounds / "mulaw.au", "pcm_mulaw")
    sound(sounds / "int24.aiff", "pcm_s24be")
    sound(sounds / "mono.flac", "flac")
    sound(sounds / "surround.flac", "flac", "7.1")
    sound(sounds / "mono.mp3", "libmp3lame")
    sound(sounds / "mono.ogg", "libopus", rate=48000)
    sound(sounds / "stereo.m4a", "aac", "stereo", 16000)
    sound(sounds / "surround.mkv", "aac", "7.1", 16000)
    mel = np.random.default_rng(0).standard_normal((128, 12)).astype(np.float32)
    save_file({"input_features": mel}, sounds / "features.safetensors", {"sample_rate": "16000"})
    image = picture()
    deep = Image.fromarray((np.asarray(image.convert("L")).astype(np.uint16)) * 257)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "turned"
    image.save(pictures / "rgb.png")
    image.convert("P").save(pictures / "palette.png", transparency=3)
    deep.save(pictures / "deep.png")
    image.save(pictures / "exif.jpg", exif=exif)
    image.convert("CMYK").save(pictures / "progressive_cmyk.jpg", progressive=True)
    image.save(pictures / "lossless.webp", lossless=True, exif=exif)
    image.save(pictures / "lossy.webp")
    image.save(pictures / "animated.gif", save_all=True, append_images=[image.rotate(90)])
    image.save(pictures / "rgb.bmp")
    image.save(pictures / "deflate.tiff", compression="tiff_adobe_deflate")
    deep.save(pictures / "deep.tiff")
    image.save(pictures / "rgb.ppm")
    film(videos / "mpeg4.mp4", "mpeg4", "aac")
    film(videos / "h264.mkv", "libx264")
    film(videos / "mjpeg.avi", "mjpeg")
    film(videos / "vp9.webm", "libvpx-vp9")
    film(videos / "mpeg2.ts", "mpeg2video")


if __name__ == "__main__":
    main()

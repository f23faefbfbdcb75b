"""The voice's training: phrases, codec, the Talker's examples in the runtime's layout, speaking freely, what listening counts."""

import random
import re

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from omni_ros.pipeline.positions import mrope_positions  # noqa: E402
from training import checkpoint, domain, layout  # noqa: E402
from training.model.talker import Talker  # noqa: E402
from training.voice import codec, listen, phrases  # noqa: E402
from training.voice.answers import FRAME, Voice  # noqa: E402
from training.voice.examples import ROWS, Examples, user_rows  # noqa: E402
from training.voice.judges import SpectralDistance, sound_in_silence  # noqa: E402
from training.voice.speak import speak  # noqa: E402
from training.voice.talker import prompt_rows  # noqa: E402

ANSWERS = domain.answers(triples=60)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    from training import base

    folder = tmp_path_factory.mktemp("base")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["base", str(folder)])
        base.main()
    return folder


@pytest.fixture(scope="module")
def voice(tmp_path_factory):
    """A voice of chirps: each phrase another one, of 4 to 9 frames."""
    keys = sorted({key for answer in ANSWERS for key, _ in phrases.split(answer)})
    rng = np.random.default_rng(0)
    frames, t = rng.integers(4, 10, len(keys)), np.arange(9 * FRAME) / 24000
    pcm = [np.sin(2 * np.pi * t[: n * FRAME] * rng.uniform(100, 900) * (1 + t[: n * FRAME])) * 8000 for n in frames]
    path = tmp_path_factory.mktemp("voice") / "answers.npz"
    np.savez(path, keys=np.array(keys), frames=frames, pcm=np.concatenate(pcm).astype(np.int16))
    return Voice(path)


def tokens(text):
    return re.findall(r"\w+|[.,]", text.lower())


def test_phrases_are_the_answer_and_are_known_before_they_are_spoken():
    begins = {}
    for answer in ANSWERS:
        split = phrases.split(answer)
        assert [w for key, _ in split for w in tokens(key) if w not in ".,"] == [w for w in tokens(answer) if w not in ".,"]
        assert [key[-1] for key, _ in split][-1] == "." and split[-1][1] == phrases.END
        # at the frame that begins the first phrase, the Talker has read LEAD + 1 tokens: they decide which phrase it is
        begins.setdefault(tuple(tokens(answer)[: phrases.LEAD + 1]), set()).add(split[0][0])
    assert all(len(keys) == 1 for keys in begins.values()), [k for k in begins.values() if len(k) > 1]


def test_held_out_answers_are_made_of_phrases_that_are_trained():
    held = phrases.held_out(ANSWERS)
    known = {key for a in ANSWERS if a not in held for key, _ in phrases.split(a)}
    assert len(held) > 20
    assert all(key in known for a in held for key, _ in phrases.split(a))


def test_answers_are_drawn_evenly_over_their_forms():
    drawn = phrases.even(phrases.by_form(ANSWERS), random.Random(0), 2000)
    lists = sum(a.count(" a") > 1 and a.startswith("I see") for a in drawn) / 2000
    assert lists < sum(a.count(" a") > 1 and a.startswith("I see") for a in ANSWERS) / len(ANSWERS)
    assert len({phrases.form(a) for a in drawn}) > 0.9 * len({phrases.form(a) for a in ANSWERS})


def test_a_phrase_has_the_same_sound_everywhere_and_pauses_are_silent(voice):
    pcm = voice.say("I see a red circle and a blue star.").reshape(-1, FRAME)
    index = voice.frames_of("I see a red circle and a blue star.")
    assert not pcm[index < 0].any() and (index[: phrases.LEAD] < 0).all()
    other = voice.frames_of("I see a red circle and a red star.")
    assert set(index[index >= 0]) & set(other[other >= 0]) == set(range(*voice.spans["i see a red circle,"]))


def test_codec_codes_are_of_the_clip_alone(voice):
    frames = [b - a for a, b in list(voice.spans.values())[:30]]
    pcm = torch.from_numpy(voice.pcm[: sum(frames) * FRAME]).float() / 32767
    x = codec.features_of(pcm, frames)
    fitted = codec.Codec.fit(x, 32)
    codes = fitted.encode(x)
    assert codes.shape == (sum(frames), 16)
    alone = fitted.encode(codec.features_of(pcm[frames[0] * FRAME : (frames[0] + frames[1]) * FRAME], [frames[1]]))
    beside = codes[frames[0] : frames[0] + frames[1]]
    assert torch.equal(alone[:, :8], beside[:, :8])  # nothing is left for the last books of so few clips: rounding decides there
    decode = lambda c: sum(book[c[:, i]] for i, book in enumerate(fitted.books)) @ fitted.basis.t() + fitted.mean  # noqa: E731
    heard = decode(codes)
    torch.testing.assert_close(decode(alone), decode(beside), atol=1e-3, rtol=0)
    assert (heard - x).square().sum() < 0.1 * (x - x.mean(0)).square().sum()


def test_user_rows_have_the_positions_of_the_runtime(base):
    build, rnd = layout.Builder(base), random.Random(0)
    t = build.config["thinker_config"]
    for _ in range(20):
        ids, positions, media = user_rows(rnd, build, ["hello"], 150)
        plain = [
            i if i not in (t["image_token_id"], t["video_token_id"]) or m else 0 for i, m in zip(ids, media)
        ]  # noise may hold any id
        grids, at = [], 0
        while at < len(plain):  # pictures, from the rows that share a first position
            if plain[at] == t["image_token_id"]:
                n = int((positions[0] == positions[0, at]).sum())
                w = int(positions[2, at : at + n].max() - positions[2, at]) + 1
                grids.append([1, 2 * n // w, 2 * w])
                at += n
            else:
                at += 1
        want, _ = mrope_positions(np.array(plain), t["image_token_id"], t["video_token_id"], np.array(grids).reshape(-1, 3),
                                  np.zeros((0, 3), int), [], 2, 13)  # fmt: skip
        np.testing.assert_array_equal(positions, want)
        assert len(ids) == len(media) <= 150


def test_examples_are_a_reply_token_and_a_frame_a_row(base, voice):
    codes = np.random.default_rng(0).integers(0, 128, (len(voice.pcm) // FRAME + 1, 16)).astype(np.uint8)
    b = next(iter(Examples(base, voice, codes, ANSWERS, batch=6, picked=64, seed=1, clean=True)))
    build = layout.Builder(base)
    for j in range(6):
        at, n = int(b["start"][j]), int(b["length"][j])
        text = [i for i in b["text"][j, at : at + n].tolist()]
        end = text.index(build.config["tts_eos_token_id"])
        answer = build.tokenizer.decode(text[:end])
        assert answer in ANSWERS and set(text[end + 1 :]) <= {build.config["tts_pad_token_id"]}
        want = torch.from_numpy(codes.astype(np.int64)[voice.frames_of(answer)])
        assert torch.equal(b["truth"][j, at : at + n], want) and torch.equal(b["frames"][j, at + 1 : at + 1 + n], want)
        assert b["label"][j, at : at + n].tolist() == want[:, 0].tolist()
        assert b["label"][j, at + n] == build.config["talker_config"]["codec_eos_token_id"]
        assert (b["label"][j, :at] == -100).all() and (b["label"][j, at + n + 1 :] == -100).all()
    assert torch.equal(b["truth"].flatten(0, 1)[b["rows"]], b["codes"]) and torch.equal(b["told"], b["codes"])
    spoilt = next(iter(Examples(base, voice, codes, ANSWERS, batch=6, picked=64, seed=1)))
    wrong = (spoilt["frames"][:, 1:] != spoilt["truth"][:, :-1]).any(-1)[spoilt["is_frame"][:, 1:]]
    assert 0.2 < wrong.float().mean() < 0.5 and (spoilt["told"] != spoilt["codes"]).any()


def test_speaking_freely_says_what_the_talker_would_say_next(base, voice):
    torch.manual_seed(0)
    codes = np.random.default_rng(0).integers(0, 128, (len(voice.pcm) // FRAME + 1, 16)).astype(np.uint8)
    b = next(iter(Examples(base, voice, codes, ["It is red.", "I waved."], batch=2, picked=8, seed=1, clean=True)))
    net = Talker(checkpoint.load_config(base)["talker_config"])
    for p in net.parameters():
        p.data += torch.randn_like(p) * 0.05
    with torch.no_grad():
        prompt = prompt_rows(net, torch.randn(1024, 192) * 0.5, b)
        found, ended = speak(net, prompt, b)
        assert ended.max() > 3
        for j in range(2):
            at, n = int(b["start"][j]), int(ended[j])
            x = prompt[j : j + 1].clone()
            x[0, at + 1 : at + 1 + n] += net.frame_embeds(found[j, at : at + n])
            hidden = net.model(x, b["positions"][:, j : j + 1])
            logits = net.codec_head(hidden)[0, at : at + n, : int(b["truth"].max()) + 1]
            assert torch.equal(logits.argmax(-1), found[j, at : at + n, 0])
            rest = net.code_predictor(
                hidden[0, at : at + n], net.model.codec_embedding(found[j, at : at + n, 0]), found[j, at : at + n]
            )
            assert torch.equal(rest.argmax(-1), found[j, at : at + n, 1:])
    assert found.shape == (2, ROWS, 16) and (ended <= b["length"] + 5).all()


def test_losses_see_hum_in_silence():
    wave = torch.zeros(2, 24000)
    wave[:, 6000:12000] = torch.sin(torch.arange(6000) * 0.1) * 0.3
    assert SpectralDistance()(wave, wave) < 1e-6 and sound_in_silence(wave, wave) == 0
    hum = wave + 0.01 * torch.sin(torch.arange(24000) * 0.02)
    assert SpectralDistance()(hum, wave) > 0.1 and 0.005 < sound_in_silence(hum, wave) < 0.01


@pytest.mark.parametrize(
    ("heard", "said"),
    [
        ("2 plus 11 is 13.", "Two plus eleven is thirteen."),
        ("9-4 is 5", "Nine minus four is five."),
        ("1 + 2 = 3", "One plus two is three."),
        ("The color is Gray!", "the colour is grey"),
    ],
)
def test_whisper_writes_numbers_and_signs(heard, said):
    assert listen.words(heard) == listen.words(said)


def test_word_errors():
    assert listen.errors("a red circle".split(), "a red circle".split()) == 0
    assert listen.errors("a red circle".split(), "red square too".split()) == 3
    assert listen.errors("a b c d".split(), "a c d".split()) == 1
    assert listen.errors("a".split(), []) == 1


def test_hum_and_clicks_are_counted():
    rng = np.random.default_rng(0)
    speech = (
        np.sin(np.arange(10 * FRAME) * 0.05).astype(np.float32) * 0.3 + rng.standard_normal(10 * FRAME).astype(np.float32) * 1e-3
    )
    silent = np.zeros(10, bool)
    silent[4:7] = True
    speech[4 * FRAME : 7 * FRAME] = 0
    assert listen.pauses(speech, silent) == [-120.0, -120.0]
    speech[4 * FRAME : 7 * FRAME] = 0.01 * np.sin(np.arange(3 * FRAME) * 0.02)
    assert all(-44 < level < -42 for level in listen.pauses(speech, silent))
    before = listen.clicks(speech)
    speech[3000] += 0.5
    assert listen.clicks(speech) > before

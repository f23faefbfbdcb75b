"""Two replays of one bag: do they have the same words, codes and samples?"""

import numpy as np

from omni_ros.replay.conversation import Conversation, Turn


def differences(now: Conversation, before: Conversation) -> list[str]:
    """In words; empty when the conversations are the same. Times that the engines took are no part of it."""
    found = []
    if now.user_speaking_times() != before.user_speaking_times():
        found.append(f"the user is heard at {_spans(now)}; before at {_spans(before)}")
    if len(now.turns) != len(before.turns):
        found.append(f"{len(now.turns)} turns, before {len(before.turns)}")
    for number, (turn, earlier) in enumerate(zip(now.turns, before.turns), 1):
        found += [f"turn {number}: {what}" for what in _turn(turn, earlier)]
    if now.history != before.history:
        found.append(f"remembered at the end: {now.history}, before {before.history}")
    return found


def _turn(now: Turn, before: Turn) -> list[str]:
    found = []
    asked = [(turn.said, turn.say, round(turn.sound_s, 3), turn.picture) for turn in (now, before)]
    if asked[0] != asked[1]:
        found.append(f"asked {_question(now)}, before {_question(before)}")
    if now.facts != before.facts:
        found.append(f"what was known: {now.facts!r}, before {before.facts!r}")
    if abs(now.asked_s - before.asked_s) > 1e-3:
        found.append(f"asked at {now.asked_s:.3f} s, before at {before.asked_s:.3f} s")
    if now.text != before.text or now.error != before.error:
        found.append(f"answer {_answer(now)}, before {_answer(before)}")
    elif now.token_ids != before.token_ids:
        found.append("the same words from other tokens")
    for name in ("reason", "audio_reason"):
        if getattr(now, name) != getattr(before, name):
            found.append(f"{name} {getattr(now, name)}, before {getattr(before, name)}")
    if not np.array_equal(now.codes, before.codes):
        frames = min(now.codes.shape[1], before.codes.shape[1])
        if now.codes.shape[0] != before.codes.shape[0]:
            found.append(f"{now.codes.shape[0]} codebooks, before {before.codes.shape[0]}")
        else:
            other = np.flatnonzero((now.codes[:, :frames] != before.codes[:, :frames]).any(axis=0))
            first = int(other[0]) if other.size else frames
            found.append(f"codes differ from frame {first} on ({now.codes.shape[1]} frames, before {before.codes.shape[1]})")
    if not np.array_equal(now.pcm, before.pcm):
        samples = min(now.pcm.size, before.pcm.size)
        most = int(np.abs(now.pcm[:samples].astype(int) - before.pcm[:samples]).max(initial=0))
        found.append(f"samples differ by up to {most / 32768:.4f} ({now.pcm.size} played, before {before.pcm.size})")
    if now.speech_s != before.speech_s:
        found.append(f"speech begins at {now.speech_s} s, before at {before.speech_s} s")
    return found


def _answer(turn: Turn) -> str:
    return f"failed ({turn.error})" if turn.error else repr(turn.text)


def _question(turn: Turn) -> str:
    picture = f" and a picture of {turn.picture[1]} x {turn.picture[0]}" if turn.picture else ""
    return f"to say {turn.say!r}" if turn.say else (repr(turn.said) if turn.said else f"{turn.sound_s:.3f} s of sound") + picture


def _spans(conversation: Conversation) -> str:
    return ", ".join(f"{at:.2f} s" for at, speaking in conversation.user_speaking if speaking) or "no time"

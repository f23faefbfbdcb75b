"""Answers as sequences of phrases, each of which always sounds the same.

A Talker gets one token of its reply with each codec frame, so it cannot know the end of a sentence when it begins to
speak, while a speech synthesiser shapes the first sound by all of the sentence. Here nothing depends on what is not known
yet: a phrase is spoken alone, with the melody of a phrase that goes on (its key ends in a comma) or ends (full stop), from
the start of a frame on; LEAD frames of silence ahead of an answer let the text run ahead by as many tokens.
"""

import re
from random import Random
from zlib import crc32

from training import domain

LEAD = 5  # frames of silence before an answer: its first phrase has at most LEAD + 1 tokens that differ
PAUSE = {"": 0, ",": 1, ".": 3}  # frames of silence after a phrase, by the mark it ends with
END = 2  # frames of silence after an answer
LONG = 6  # words; a longer phrase is parted ahead of "is", "a", "on the" or "in the"

Phrase = tuple[str, int]  # key (lower case, ends in "," or "."), frames of silence after it


def split(answer: str) -> list[Phrase]:
    """ "On the left is a red circle." -> [("on the left,", 0), ("is a red circle.", END)]"""
    clauses = re.split(r"(?<=[,.!?]) |(?<![,.!?]) (?=and )", answer.strip().lower())
    pieces: list[str] = []
    for clause in clauses:
        parts = re.split(r" (?=(?:is|an?|on the|in the) )", clause, maxsplit=1) if len(clause.split()) > LONG else [clause]
        pieces += parts
    out = []
    for i, piece in enumerate(pieces):
        words = piece.rstrip(",.!?")
        mark = piece[len(words) :][:1].replace("!", ".").replace("?", ".")
        last = i == len(pieces) - 1
        out.append((words + ("." if last or mark == "." else ","), END if last else PAUSE[mark]))
    return out  # fmt: skip


WORDS = {
    **dict.fromkeys(domain.COLOURS, "COLOUR"),
    **dict.fromkeys(domain.NUMBERS, "NUMBER"),
    **{word: "SHAPE" for shape in domain.SHAPES for word in (shape, shape + "s")},
}


def form(answer: str) -> str:
    """What kind of sentence: "I see a COLOUR SHAPE." """
    return re.sub(r"[a-z]+", lambda m: WORDS.get(m[0], m[0]), answer.lower())


def by_form(answers: list[str]) -> list[list[str]]:
    forms: dict[str, list[str]] = {}
    for answer in answers:
        forms.setdefault(form(answer), []).append(answer)
    return list(forms.values())


def even(forms: list[list[str]], rnd: Random, n: int) -> list[str]:
    """n answers; a form is drawn by the cube root of how many answers it has: most answers are lists, few replies are."""
    return [rnd.choice(f) for f in rnd.choices(forms, [len(f) ** (1 / 3) for f in forms], k=n)]


def held_out(answers: list[str]) -> set[str]:
    """A tenth of the answers, never trained on; only such as are made of phrases that other answers have, too."""
    held = {a for a in answers if crc32(a.encode()) % 10 == 0}
    known = {key for a in answers if a not in held for key, _ in split(a)}
    return {a for a in held if all(key in known for key, _ in split(a))}

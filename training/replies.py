"""Answers, functions of the scene. No torch."""

from training.forms import COLOURS, NUMBERS, PLACE, SHAPES, SLOTS


def a(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def thing(obj: tuple) -> str:
    return f"{a(obj[1])} {obj[1]} {obj[2]}"


def is_crowd(scene: list | None) -> bool:
    return bool(scene) and scene[0][0] == "crowd"


def sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def answer_see(scene):
    if not scene:
        return "I see nothing."
    if is_crowd(scene):
        return f"I see {NUMBERS[len(scene)]} {scene[0][1]} {scene[0][2]}s."
    things = [thing(o) for o in scene]
    return "I see " + (", ".join(things[:-1]) + " and " if len(things) > 1 else "") + things[-1] + "."


def answer_colour(scene, shape):
    found = [o for o in scene if o[2] == shape]
    return f"The {shape} is {found[0][1]}." if found else f"I do not see a {shape}."


def answer_count(scene, shape=None, colour=None):
    n = len([o for o in scene if shape in (None, o[2]) and colour in (None, o[1])])
    words = f"{colour} " * (colour is not None) + (shape or "shape")
    return f"I see {'no' if n == 0 else NUMBERS[n]} {words}{'' if n == 1 else 's'}."


def answer_position(scene, slot):
    found = [o for o in scene if o[0] == slot]
    return sentence(f"{PLACE[slot]} is {thing(found[0])}" if found else f"nothing is {PLACE[slot]}")


def answer_exists(scene, shape, colour=None):
    found = any(o[2] == shape and colour in (None, o[1]) for o in scene)
    what = f"{a(colour)} {colour} {shape}" if colour else f"a {shape}"
    return f"Yes, I see {what}." if found else f"No, I do not see {what}."


def answer_exists_colour(scene, colour):
    found = any(o[1] == colour for o in scene)
    return f"Yes, I see something {colour}." if found else f"No, nothing is {colour}."


def answer_where(scene, shape, colour=None):
    found = [o for o in scene if o[2] == shape and colour in (None, o[1])]
    if not found:
        return f"I do not see {thing(('', colour, shape)) if colour else f'a {shape}'}."
    return f"The {f'{colour} ' * (colour is not None)}{shape} is {PLACE[found[0][0]]}."


def answer_which(scene, colour):
    found = [o for o in scene if o[1] == colour]
    return f"The {found[0][2]} is {colour}." if found else f"Nothing is {colour}."


def answer_is_it(scene, shape, colour):
    found = [o for o in scene if o[2] == shape]
    if not found:
        return f"I do not see a {shape}."
    return f"Yes, the {shape} is {colour}." if found[0][1] == colour else f"No, the {shape} is {found[0][1]}."


def answer_colour_at(scene, slot):
    found = [o for o in scene if o[0] == slot]
    return f"It is {found[0][1]}." if found else sentence(f"nothing is {PLACE[slot]}")


def answer_sum(x, y, sign):
    return sentence(f"{NUMBERS[x]} {sign} {NUMBERS[y]} is {NUMBERS[x + y if sign == 'plus' else x - y]}")


def answer_count_to(n):
    return sentence(", ".join(NUMBERS[1 : n + 1]))


def sayable() -> list[str]:
    """What follows "say"."""
    words = [
        *COLOURS,
        *SHAPES,
        *SLOTS,
        *NUMBERS,
        "hello",
        "goodbye",
        "thank you",
        "good morning",
        "yes",
        "no",
        "robot",
        "nothing",
    ]
    words += [f"{c} {s}" for c in COLOURS for s in SHAPES]
    words += (
        [f"{NUMBERS[n]} {SHAPES[n % 4]}s" for n in range(2, 10)] + [f"hello {s}" for s in SHAPES] + ["hello robot", "yes and no"]
    )
    return words


SAYABLE = sayable()

"""How a question is typed and said. No torch."""

STATEMENTS = (
    "hello", "hi", "hey", "thank", "good", "add", "count", "describe", "tell",
    "bye", "see", "and", "say", "wave", "go", "move", "drive",
    "please", "help", "to", "plus",
)  # fmt: skip


def decorate(rnd, question: str) -> str:
    """Words around a question that change nothing."""
    form = rnd.random()
    if form < 0.7 or question.split()[0] in ("hello", "hi", "hey", "thank", "thanks", "bye", "goodbye", "good", "say"):
        return question
    return rnd.choice(
        ("please {}", "robot, {}", "{}, please", "hey robot, {}", "so {}", "now {}", "{}, robot", "okay, {}")
    ).format(question)


def punctuate(question: str) -> str:
    """As it is spelt out for a speech synthesiser."""
    first = question.replace(",", "").split()[0]
    return question + ("." if first in STATEMENTS else "?")


def typed(rnd, question: str) -> str:
    """How people type it."""
    if question.startswith("<tool_response>"):
        return question
    text = decorate(rnd, question)
    if rnd.random() < 0.15:
        text = text.replace("colour", "color")
    style = rnd.random()
    if style < 0.35:
        return text
    if style < 0.45:
        return text.replace(",", "")
    text = text[0].upper() + text[1:] if style < 0.9 else text
    end = punctuate(question)[-1]
    return text + (end if rnd.random() < 0.8 else rnd.choice(("", "?", ".", "!")))

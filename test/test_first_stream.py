"""Messages of several publishers on one topic, told apart by their numbers."""

import numpy as np
import pytest

from omni_ros.nodes.first_stream import FirstStream


def messages(name: str, first: int, begin: float, count: int, period: float = 0.02, jitter: float = 0.0, lose: float = 0.0):
    """(arrival, name, info) of a publisher."""
    rng = np.random.default_rng(first)
    for k in range(count):
        sent = begin + k * period
        if rng.random() >= lose:
            info = {"publication_sequence_number": first + k, "source_timestamp": int(sent * 1e9)}
            yield sent + jitter * rng.random(), name, info


def passed(*publishers, count=lambda: 2) -> str:
    """Whose messages got through, in order."""
    stream, got = FirstStream(), []
    for arrival, name, info in sorted((m for p in publishers for m in p), key=lambda m: m[0]):
        if stream.accepts(info, arrival, count):
            got.append(name)
    return "".join(got)


@pytest.mark.parametrize("numbers", [(1, 1), (1000, 1), (1, 1000), (500, 510)])
@pytest.mark.parametrize("offset", [0.003, 0.01, 0.5])
def test_the_first_is_heard_alone(numbers, offset):
    first, second = numbers
    got = passed(messages("a", first, 0.0, 300, jitter=0.002), messages("b", second, offset, 200, jitter=0.002))
    assert got == "a" * 300


def test_lost_messages_are_no_second_publisher():
    assert set(passed(messages("a", 1, 0.0, 1000, lose=0.3), count=lambda: 1)) == {"a"}
    stream = FirstStream()
    for arrival, _, info in messages("a", 1, 0.0, 1000, lose=0.3):
        assert stream.accepts(info, arrival, lambda: 1)
        assert stream.others(arrival) == 0


def test_different_rates():
    assert passed(messages("a", 40, 0.0, 100, period=0.06), messages("b", 1, 0.3, 500, period=0.01)) == "a" * 100


def test_the_second_is_heard_once_the_first_is_silent():
    got = passed(messages("a", 1, 0.0, 100), messages("b", 1, 1.0, 300))
    assert got.startswith("a" * 100 + "b") and got.count("b") > 140


def test_the_same_microphone_started_again_is_heard_at_once():
    assert passed(messages("a", 900, 0.0, 50), messages("b", 1, 1.1, 50), count=lambda: 1) == "a" * 50 + "b" * 50


def test_others_are_counted_while_they_are_there():
    stream = FirstStream()
    both = sorted([*messages("a", 1, 0.0, 200), *messages("b", 1, 1.0, 50)], key=lambda m: m[0])
    seen = []
    for arrival, _, info in both:
        stream.accepts(info, arrival, lambda: 2)
        seen.append((arrival, stream.others(arrival)))
    assert {n for at, n in seen if at < 1.0} == {0} and {n for at, n in seen if 1.1 < at < 1.9} == {1}
    assert seen[-1][1] == 0


def test_a_middleware_that_does_not_count():
    info = {"publication_sequence_number": None, "source_timestamp": 0}
    assert FirstStream().accepts(info, 0.0, lambda: 2)


@pytest.mark.parametrize("jump", [3600.0, -3600.0, 2.0, -2.0])
def test_a_wall_clock_that_jumps_loses_nothing(jump):
    """Of the machine that publishes, after two seconds: the arrivals are of a steady one."""
    stream = FirstStream()
    for number in range(300):
        sent = 1e6 + number * 0.02 + (jump if number >= 100 else 0.0)
        info = {"publication_sequence_number": number + 1, "source_timestamp": int(sent * 1e9)}
        assert stream.accepts(info, number * 0.02, lambda: 1)
        assert stream.others(number * 0.02) == 0

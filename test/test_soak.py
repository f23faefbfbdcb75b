"""What `bench.soak` calls growth."""

import pytest

from bench.soak import ALLOWED, growth, problems


def samples(**rise: float) -> list[dict[str, float]]:
    """An hour of a node that is warm after its first quarter, from where each of `rise` goes up by so much in the hour."""
    return [
        {name: 100.0 + (50 if minute < 15 else 0) + rise.get(name, 0.0) * minute / 60 for name in ALLOWED} for minute in range(60)
    ]


def result(**changes) -> dict:
    whole = {
        "growth": growth(samples()),
        "exit": 0,
        "peak_above_idle_mb": 200.0,
        "stays_mb": 10.0,
        "defects": 0,
        "unanswered": [],
    }
    return whole | changes


def test_what_is_made_once_is_no_growth():
    assert growth(samples()) == dict.fromkeys(ALLOWED, 0.0)
    assert problems(result()) == []


@pytest.mark.parametrize("name,rise", [("rss_mb", 120.0), ("threads", 6.0), ("descriptors", 10.0)])
def test_what_goes_on_rising_is(name, rise):
    grown = growth(samples(**{name: rise}))
    assert grown[name] == pytest.approx(rise / 2)
    (problem,) = problems(result(growth=grown))
    assert problem.startswith(f"{name} grew")


@pytest.mark.parametrize(
    "change,words",
    [
        ({"exit": -11}, "ended with -11"),
        ({"peak_above_idle_mb": 301.0}, "301 MB above idle"),
        ({"stays_mb": 51.0}, "51 MB above idle stay"),
        ({"defects": 1}, "1 defects"),
        ({"unanswered": ["typed: no answer"]}, "typed: no answer"),
    ],
)
def test_what_else_fails(change, words):
    (problem,) = problems(result(**change))
    assert words in problem

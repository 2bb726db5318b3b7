"""Who is to blame for a made-up history of deaths."""

from __future__ import annotations

import pytest

from attunet3d.many.crashes import HEALTH_SECONDS, MOST_DEATHS, MOST_IN_ALL, WAVE_SECONDS, Crashes


class History:
    """Crashes with a clock that is set by hand, on nodes "a" and "b", which are there unless they are taken away."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.nodes = {"a", "b"}
        self.asked = 0
        self.crashes = Crashes(lambda: self.now)

    def alive(self) -> set[str]:
        self.asked += 1
        return self.nodes

    def judge(self, after: float = HEALTH_SECONDS) -> list[tuple[str, str]]:
        self.now += after
        return self.crashes.judge(self.alive)

    def trial(self, case: str, node: str = "a", reason: str = "SIGSEGV") -> None:
        """The case dies alone."""
        self.crashes.begin_trial(case)
        self.crashes.worker_died([case], node, reason)


@pytest.fixture
def history() -> History:
    return History()


def test_three_deaths_alone_and_the_system_s_reason(history: History) -> None:
    history.crashes.worker_died(["x", "y"], "a", "SIGKILL")
    history.crashes.clear("y")
    for number in range(MOST_DEATHS):
        assert history.crashes.next_suspect() == "x"
        history.trial("x", reason=f"reason {number}")
        assert history.crashes.next_suspect() is None, "not before the node has been asked for"
        found = history.judge()
        assert bool(found) == (number == MOST_DEATHS - 1)
    assert found == [("x", "its worker died 3 times with this case alone: reason 2")]
    assert history.crashes.suspects == set()


def test_deaths_with_others_are_nobody_s(history: History) -> None:
    for _ in range(20):
        history.crashes.worker_died(["x", "y"], "a", "SIGKILL")
        assert history.judge() == []
    assert history.crashes.suspects == {"x", "y"}


def test_a_node_is_asked_for_when_it_would_have_been_missed(history: History) -> None:
    history.crashes.suspect(["x"])
    history.trial("x")
    assert history.judge(HEALTH_SECONDS - 1) == []
    assert history.asked == 0
    history.nodes = {"b"}
    history.judge(1)
    assert history.asked == 1
    for number in range(MOST_DEATHS):
        history.trial("x", "b")
        assert bool(history.judge()) == (number == MOST_DEATHS - 1), "what died with its node does not count"


@pytest.mark.parametrize("cases", [[], ["done"], ["done", "failed"]])
@pytest.mark.parametrize("after", [-WAVE_SECONDS, 0, WAVE_SECONDS])
def test_what_dies_near_what_holds_no_suspect_is_not_charged(history: History, cases: list[str], after: float) -> None:
    history.crashes.suspect(["x"])
    if after <= 0:
        history.crashes.worker_died(cases, "b", "SIGKILL")
        history.now -= after
    history.trial("x")
    if after > 0:
        history.judge()
        history.now += after - HEALTH_SECONDS
        history.crashes.worker_died(cases, "b", "SIGKILL")
    for case in cases:
        history.crashes.clear(case)
    for number in range(MOST_DEATHS):
        history.judge(WAVE_SECONDS + HEALTH_SECONDS)
        history.trial("x")
        assert bool(history.judge()) == (number == MOST_DEATHS - 1), "the first is one too few"


def one_death_before_judgement(history: History) -> None:
    """Two suspects, of which x has died as often as counts, and y once less: it is still open."""
    history.crashes.suspect(["x", "y"])
    for _ in range(MOST_DEATHS - 1):
        history.trial("x")
        history.trial("y", "b")
        assert history.judge() == []
    history.trial("x")
    assert history.judge() == []


def test_a_wave_that_hits_several_on_trial(history: History) -> None:
    """One has its third death while it is open whether another that died then is good: it is, and none is charged."""
    one_death_before_judgement(history)
    assert history.crashes.next_suspect() == "y"
    history.crashes.begin_trial("y")
    history.crashes.clear("y")
    assert history.judge(0) == []
    assert history.crashes.next_suspect() == "x"


def test_several_deadly_cases(history: History) -> None:
    """None of them turns out to be good."""
    one_death_before_judgement(history)
    history.trial("y", "b")
    assert [case for case, _ in history.judge()] == ["x", "y"]


def test_it_ends_even_where_something_else_is_always_killed_too(history: History) -> None:
    history.crashes.suspect(["x"])
    for number in range(MOST_IN_ALL):
        history.crashes.worker_died([], "b", "SIGKILL")
        history.trial("x")
        assert bool(history.judge()) == (number == MOST_IN_ALL - 1)


def test_trials_go_round_and_to_other_nodes(history: History) -> None:
    history.crashes.suspect(["x", "y"])
    history.trial("x", "a")
    history.judge()
    assert history.crashes.next_suspect("a") == "y"
    history.trial("y", "b")
    history.judge()
    assert history.crashes.next_suspect("a") == "y"
    assert history.crashes.next_suspect("b") == "x"


def test_a_trial_without_a_result_is_had_again(history: History) -> None:
    history.crashes.suspect(["x"])
    history.crashes.begin_trial("x")
    assert history.crashes.next_suspect() is None
    history.crashes.release("x")
    assert history.crashes.next_suspect() == "x"

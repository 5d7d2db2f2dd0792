"""How runs are made: the order, the warm-up, and when they end."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from evaluation.interleave import BUDGET_ROUNDS, FEWEST_ROUNDS, SIDES, Session, interleave
from evaluation.latency import compare
from evaluation.latency_records import Side
from model.configuration import Latency
from model.records import RunTiming

PROMPTS = ["a", "b"]


class Fake:
    """Sides whose runs take what a function of the run's number says, on a clock of their own."""

    def __init__(self, took: Callable[[Side, int], float]) -> None:
        self.took, self.seconds = took, 0.0
        self.order: list[tuple[str, Side]] = []

    def run(self, settings: Latency) -> Session:
        def runner(side: Side) -> Callable[[str], RunTiming]:
            def run(prompt: str) -> RunTiming:
                ms = self.took(side, len(self.order))
                self.order.append((prompt, side))
                self.seconds += ms / 1e3
                return RunTiming(ttft_ms=ms / 2, itl_ms=[ms / 4, ms / 4], end_to_end_ms=ms)

            return run

        sides = {side: runner(side) for side in SIDES}
        return interleave(sides, PROMPTS, settings, lambda: self.seconds)


def steady(side: Side, number: int) -> float:
    return (12.0 if side == "configuration" else 10.0) * (1 + 0.01 * (number % 7 - 3) / 3)


def test_every_round_runs_every_prompt_on_both_sides_in_an_order_of_the_seed() -> None:
    orders = []
    for seed in (0, 0, 1):
        fake = Fake(steady)
        session = fake.run(Latency(seed=seed))
        assert len(session.runs) == session.rounds * 4
        for number in range(session.rounds):
            each = {(r.prompt, r.side) for r in session.runs if r.round == number}
            assert each == {(prompt, side) for prompt in PROMPTS for side in SIDES}
        orders.append(fake.order[: 4 * FEWEST_ROUNDS])
    assert orders[0] == orders[1] != orders[2]
    firsts = [orders[0][i][1] for i in range(0, len(orders[0]), 2)]
    assert 0.2 < firsts.count("baseline") / len(firsts) < 0.8


def test_it_stops_when_the_error_is_small_and_finds_the_ratio() -> None:
    session = Fake(steady).run(Latency())
    assert session.stopped_because == "error of the mean"
    assert session.rounds == FEWEST_ROUNDS
    found = compare(session, 0.03, 0)[0]
    assert found.metric == "end_to_end_ms"
    assert found.verdict == "slower"
    assert found.ratio.value == pytest.approx(1.2, rel=0.01)
    assert session.sample("baseline", "tpot_ms").shape == (session.rounds, 2)
    assert session.sample("baseline", "itl_ms").shape == (session.rounds, 4)
    assert session.sample("baseline", "itl_ms").mean() == pytest.approx(2.5, rel=0.02)


def test_a_noisy_machine_is_given_the_budget_and_no_more() -> None:
    session = Fake(lambda _, number: 100.0 * (1 + number * 7919 % 97 / 40)).run(
        Latency(time_budget_s=20.0)
    )
    assert session.stopped_because == "time budget"
    assert 20.0 <= session.measured_s < 27.0
    assert compare(session, 0.03, 0)[0].verdict == "not enough data"


def test_a_slow_configuration_gets_the_rounds_an_interval_needs() -> None:
    """Six rounds take longer than the budget, but not three times as long."""
    session = Fake(lambda side, _: 1500.0 if side == "configuration" else 10.0).run(
        Latency(time_budget_s=7.0)
    )
    assert session.rounds == BUDGET_ROUNDS
    assert compare(session, 0.03, 0)[0].verdict == "slower"
    slower = Fake(lambda side, _: 9000.0 if side == "configuration" else 10.0).run(
        Latency(time_budget_s=7.0)
    )
    assert slower.rounds < BUDGET_ROUNDS
    assert compare(slower, 0.03, 0)[0].verdict == "not enough data"


def test_warm_up_lasts_until_times_have_settled() -> None:
    settling = Fake(lambda _, number: 10.0 + 100.0 * 0.8**number).run(Latency())
    assert settling.warmup_stable
    assert settling.warmup_rounds > 4
    first = settling.runs[0].timing.end_to_end_ms
    assert first < 11.0
    steady_session = Fake(steady).run(Latency())
    assert (steady_session.warmup_stable, steady_session.warmup_rounds) == (True, 4)


def test_a_warm_up_that_does_not_settle_is_cut_and_said() -> None:
    session = Fake(lambda _, number: 1000.0 * 0.9**number).run(Latency(time_budget_s=6.0))
    assert not session.warmup_stable

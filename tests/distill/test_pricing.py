"""Prices: worked sums, overriding, refusals, and estimates that bound what is spent."""

from pathlib import Path

import pytest

from efficient_empathy.distill.judges import Usage
from efficient_empathy.distill.pricing import Price, Purse, bound_usage, estimate_usage, load_prices
from efficient_empathy.distill.rubric import Rubric
from efficient_empathy.errors import EmpathyError


def test_cost_by_hand():
    # 800 fresh at $2 a million + 200 cached at $0.5 + 100 out at $8 = 0.0016 + 0.0001 + 0.0008
    assert Price(2, 8, 0.5).cost(Usage(1000, 100, 200)) == pytest.approx(0.0025)
    assert Price(2, 8).cost(Usage(1000, 100, 200)) == pytest.approx(0.0028)


def test_shipped_prices_hold_at_the_makers_own_service_only():
    assert load_prices(None, own_service=True)["gpt-4o-mini"] == Price(0.15, 0.6, 0.075)
    assert load_prices(None, own_service=False) == {}


def test_the_users_table_wins(tmp_path: Path):
    path = tmp_path / "prices.yaml"
    path.write_text("models: {gpt-4o-mini: {input: 1, output: 2}, own: {input: 0, output: 0}}")
    prices = load_prices(path, own_service=True)
    assert prices["gpt-4o-mini"] == Price(1, 2)
    assert prices["own"] == Price(0, 0)
    assert prices["gpt-4o"] == Price(2.5, 10, 1.25)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "not valid YAML"),
        ("gpt: 1", "must hold 'models:'"),
        ("models: {m: 3}", "must hold input and output"),
        ("models: {m: {input: 3}}", "must hold input and output"),
        ("models: {m: {input: 3, output: 4, extra: 5}}", "must hold input and output"),
        ("models: {m: {input: -3, output: 4}}", "0 or more dollars"),
        ("models: {m: {input: .inf, output: 4}}", "0 or more dollars"),
        ("models: {m: {input: three, output: 4}}", "0 or more dollars"),
    ],
)
def test_refuses_what_is_no_price(tmp_path: Path, text, message):
    path = tmp_path / "prices.yaml"
    path.write_text(text)
    with pytest.raises(EmpathyError, match=message):
        load_prices(path, own_service=False)


def test_what_is_set_aside_is_more_than_what_is_expected(example):
    rubric = Rubric.load()
    likely, bound = estimate_usage(example, rubric), bound_usage(example, rubric, 256)
    assert 0 < likely.prompt < bound.prompt
    assert 0 < likely.completion < bound.completion == 256


def test_a_purse_holds_what_is_spent_set_aside_and_lost():
    purse = Purse(10.0, 4.0)
    assert purse.take(3.0)  # 4 spent and 3 under way
    assert not purse.take(3.5)
    assert purse.lose(2.0)  # 3 of the lost attempt stay, 2 for the next: 9
    assert not purse.take(1.5)
    assert not purse.lose(2.0)  # 11 would be set aside: no other attempt may follow
    purse.give_back(3.0)  # and none did: 8
    assert purse.lost == 4.0
    assert purse.take(2.0)
    assert not purse.take(0.1)
    free = Purse(None, 0.0)
    assert free.take(1e9)
    assert free.lose(1e9)

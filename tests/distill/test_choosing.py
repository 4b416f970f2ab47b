"""Drawing examples: spread, order, memory's bound, equal texts."""

import random

from efficient_empathy.dialogues.types import Example
from efficient_empathy.distill.choosing import choose_examples


def conversation(name: str, turns: int) -> list[Example]:
    return [Example(f"{name}:{t}", name, t, (), f"{name} says {t}") for t in range(turns)]


CORPUS = [example for d in range(40) for example in conversation(f"d{d}", 1 + d % 5)]  # 40 × 3 = 120 examples


def ids(examples):
    return [example.id for example in examples]


def test_each_conversation_once_before_any_twice():
    chosen = choose_examples(CORPUS, 40, seed=0)
    assert len({example.dialogue_id for example in chosen}) == 40
    # 40 conversations hold 8 × (1+2+3+4+5); 32 of them have a second example.
    chosen = choose_examples(CORPUS, 72, seed=0)
    counts = [sum(example.dialogue_id == f"d{d}" for example in chosen) for d in range(40)]
    assert counts == [1 if d % 5 == 0 else 2 for d in range(40)]


def test_all_of_them_when_the_budget_is_greater():
    assert sorted(ids(choose_examples(CORPUS, 1000, seed=0))) == sorted(ids(CORPUS))


def test_the_same_in_any_order_also_where_it_prunes():
    for budget in (3, 10, 25, 50):
        expected = ids(choose_examples(CORPUS, budget, seed=1))
        assert len(expected) == budget
        for shuffle in range(20):
            corpus = CORPUS.copy()
            random.Random(shuffle).shuffle(corpus)
            assert ids(choose_examples(corpus, budget, seed=1)) == expected


def test_another_seed_draws_others_and_a_greater_budget_keeps_what_was_drawn():
    small, large = (choose_examples(CORPUS, budget, seed=0) for budget in (10, 20))
    assert ids(large)[:10] == ids(small)
    assert set(ids(choose_examples(CORPUS, 10, seed=1))) != set(ids(small))


def test_equal_texts_count_once_whatever_their_ids():
    twins = [Example(f"{d}:1", d, 1, (), "the same words") for d in ("a", "b", "c")]
    for corpus in (twins + CORPUS, CORPUS + twins[::-1], twins + twins):
        chosen = choose_examples(corpus, 60, seed=0)
        assert [e.id for e in chosen if e.response == "the same words"] == ["a:1"]
        assert len({example.digest for example in chosen}) == len(chosen)


def test_draws_evenly():
    # Of ten single-turn conversations, each is drawn first by about a tenth of 500 seeds (50; standard deviation 6.7).
    corpus = [example for d in range(10) for example in conversation(f"d{d}", 1)]
    first = [choose_examples(corpus, 1, seed)[0].id for seed in range(500)]
    assert all(20 < first.count(example.id) < 80 for example in corpus)

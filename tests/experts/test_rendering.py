"""From turns to tokens: exact boundaries, the oldest context cut first, never the response."""

import pytest
from tiny_words import TEMPLATE, make_tokenizer

from efficient_empathy.dialogues.types import Example, Turn
from efficient_empathy.errors import EmpathyError
from efficient_empathy.experts.rendering import Renderer, RowRefused
from efficient_empathy.manifest import canonical_json, sha256_bytes


def example(*texts, response="so sorry"):
    turns = tuple(Turn("listener" if (len(texts) - i) % 2 == 0 else "speaker", text) for i, text in enumerate(texts))
    return Example("d_turn:1", "d", len(texts), turns, response)


def words(renderer, ids):
    return renderer.tokenizer.convert_ids_to_tokens(list(ids))


def test_prompt_and_response_are_apart_and_the_end_is_supervised():
    renderer = Renderer(make_tokenizer(), system="be glad")
    found = renderer.render(example("i lost", "how", "my exam".replace("my", "your")))
    prompt = "<|system|> be glad <|end|> <|user|> i lost <|end|> <|assistant|> how <|end|> <|user|> your exam <|end|> <|assistant|>"
    assert words(renderer, found.prompt) == prompt.replace("be", "<unk>").split()
    assert words(renderer, found.response) == ["so", "sorry", "<|end|>"]
    assert found.cut_turns == 0
    assert {renderer.tokenizer.convert_ids_to_tokens(i) for i in renderer.end_ids} == {"<|end|>", "</s>"}
    assert renderer.text(found.response) == "so sorry"


def test_the_oldest_turns_go_first_and_the_response_stays_whole():
    # Each turn is role, words and end: "i lost" 4 tokens; the opening of the answer is 1. No instruction.
    tokens = 4 + 4 + 4 + 1 + 3
    context = ("i lost", "how hard", "your exam")
    fits = Renderer(make_tokenizer(), max_tokens=32, system=None).render(example(*context))
    assert len(fits.prompt) + len(fits.response) == tokens
    long = "so " * 21 + "sorry"  # 22 words and the end: of 40 tokens 17 are left, and the whole context needs 13
    renderer = Renderer(make_tokenizer(), max_tokens=40, system=None)
    assert renderer.render(example(*context, response=long)).cut_turns == 0
    longer = "so " * 17 + "sorry"  # 19 of 36 leave 17, the whole context needs 19
    renderer = Renderer(make_tokenizer(), max_tokens=36, system=None)
    cut = renderer.render(example("i lost " + "dog " * 6, "how hard", "your exam", response=longer))
    assert cut.cut_turns == 1
    assert words(renderer, cut.prompt)[:3] == ["<|assistant|>", "how", "hard"]
    assert len(cut.response) == 19


def test_a_single_turn_that_is_too_long_keeps_its_end():
    renderer = Renderer(make_tokenizer(), max_tokens=24, system=None)
    found = renderer.render(example("i " * 40 + "lost your dog"))
    assert len(found.prompt) + len(found.response) == 24
    assert words(renderer, found.prompt)[-5:] == ["lost", "your", "dog", "<|end|>", "<|assistant|>"]
    assert found.cut_turns == 1


@pytest.mark.parametrize(("response", "reason"), [("   ", "empty-response"), ("so " * 30, "response-too-long")])
def test_rows_without_room_or_words_are_refused_by_name(response, reason):
    with pytest.raises(RowRefused) as error:
        Renderer(make_tokenizer(), max_tokens=32).render(example("i lost", response=response))
    assert error.value.reason == reason


def test_neighbours_of_one_role_are_joined():
    renderer = Renderer(make_tokenizer(), system=None)
    turns = (Turn("speaker", "i lost"), Turn("speaker", "your dog"))
    prompt, _ = renderer.prompt(turns)
    assert words(renderer, prompt) == ["<|user|>", "i", "lost", "your", "dog", "<|end|>", "<|assistant|>"]


def test_an_empty_instruction_is_none():
    empty, none = (Renderer(make_tokenizer(), system=system) for system in ("", None))
    assert empty.describe() == none.describe()


def test_a_template_without_a_system_role_gets_the_instruction_in_the_first_turn():
    strict = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{% if messages[0]['role'] == 'assistant' %}{{ raise_exception('user first') }}{% endif %}"
    )
    renderer = Renderer(make_tokenizer(strict + TEMPLATE), system="glad maybe")
    prompt, _ = renderer.prompt([Turn("listener", "how"), Turn("speaker", "i lost")])
    assert words(renderer, prompt) == ["<|user|>", "glad", "maybe", "i", "lost", "<|end|>", "<|assistant|>"]


STRICT = (
    "{% for m in messages %}{% if m['role'] == 'system' and not loop.first %}{{ raise_exception('system first') }}{% endif %}"
    "{% if not loop.first and m['role'] == messages[loop.index0 - 1]['role'] %}{{ raise_exception('take turns') }}{% endif %}"
    "{% if 'exam' in m['content'] %}{{ raise_exception('no exams') }}{% endif %}{% endfor %}"
    "{% if messages[0]['role'] == 'assistant' %}{{ raise_exception('user first') }}{% endif %}"
)


def test_a_later_instruction_goes_before_all_for_a_template_that_wants_it_there():
    renderer = Renderer(make_tokenizer(STRICT + TEMPLATE), system="glad")
    turns = (Turn("speaker", "i lost"), Turn("system", "maybe"), Turn("speaker", "your dog"))
    prompt, _ = renderer.prompt(turns)
    expected = "<|system|> glad maybe <|end|> <|user|> i lost your dog <|end|> <|assistant|>"
    assert words(renderer, prompt) == expected.split()


def test_a_row_that_the_template_refuses_is_refused_by_name_and_no_other():
    renderer = Renderer(make_tokenizer(STRICT + TEMPLATE), system=None)
    bad, good = example("your exam"), example("i lost")
    with pytest.raises(RowRefused, match=r"chat-template: .*no exams"):
        renderer.render(bad)
    refused, rendered = renderer.render_many([bad, good])
    assert (refused.reason, rendered) == ("chat-template", renderer.render(good))


def test_without_a_template_it_is_a_transcript_that_ends_with_the_end_of_text():
    renderer = Renderer(make_tokenizer(None), system=None)
    found = renderer.render(example("i lost"))
    assert words(renderer, found.prompt) == ["Speaker:", "i", "lost", "Listener:"]
    assert words(renderer, found.response) == ["so", "sorry", "</s>"]


def test_a_tokenizer_that_never_stops_is_refused():
    tokenizer = make_tokenizer(None)
    tokenizer.eos_token = None
    with pytest.raises(EmpathyError, match="never stop"):
        Renderer(tokenizer)


def test_the_hash_names_template_and_instruction():
    hashes = {
        Renderer(make_tokenizer(template), system=system).template_hash
        for template in (TEMPLATE, None)
        for system in (None, "glad")
    }
    assert len(hashes) == 4
    assert Renderer(make_tokenizer(), 64).template_hash == Renderer(make_tokenizer(), 128).template_hash


def test_a_template_that_asks_for_the_day_is_told_the_same_one_always():
    asking = "{{ 'glad' if strftime_now('%d %b %Y') == '26 Jul 2024' else 'sad' }} "
    renderer = Renderer(make_tokenizer(asking + TEMPLATE), system=None)
    prompt, _ = renderer.prompt([Turn("speaker", "i lost")])
    assert words(renderer, prompt) == ["glad", "<|user|>", "i", "lost", "<|end|>", "<|assistant|>"]
    # A day that the template has by itself is its own affair.
    own = "{% if date_string is not defined %}{% set date_string = 'maybe' %}{% endif %}{{ date_string }} "
    renderer = Renderer(make_tokenizer(own + TEMPLATE), system=None)
    assert words(renderer, renderer.prompt([Turn("speaker", "i lost")])[0])[0] == "maybe"


def test_only_templates_that_ask_for_the_day_have_a_new_hash():
    hashes = {
        template: sha256_bytes(canonical_json([number, template, "glad"]))
        for number, template in (
            (1, TEMPLATE),
            (1, "date_string " + TEMPLATE),
            (2, "{{ strftime_now('%Y') }} " + TEMPLATE),
        )
    }
    for template, expected in hashes.items():
        assert Renderer(make_tokenizer(template), system="glad").template_hash == expected


def test_a_context_of_which_nothing_is_left_is_refused():
    user_first = "{% if messages[0]['role'] == 'assistant' %}{{ raise_exception('user first') }}{% endif %}"
    renderer = Renderer(make_tokenizer(user_first + TEMPLATE), max_tokens=32, system=None)
    alone = Example("d_turn:0", "d", 1, (Turn("listener", "how"),), "so sorry")
    long = Example("d_turn:2", "d", 2, (Turn("speaker", "i " * 40), Turn("listener", "how")), "so sorry")
    found = list(renderer.render_many([alone, example("i lost"), long]))
    assert [each.reason if isinstance(each, RowRefused) else each.cut_turns for each in found] == [
        "no-context",
        0,
        "no-context",
    ]
    with pytest.raises(RowRefused, match="no-context"):
        renderer.prompt([])
    with_system = Renderer(make_tokenizer(user_first + TEMPLATE), max_tokens=32, system="glad")
    assert words(with_system, with_system.prompt(alone.context)[0]) == [
        "<|system|>",
        "glad",
        "<|end|>",
        "<|assistant|>",
    ]


def test_many_at_once_are_as_one_by_one():
    renderer = Renderer(make_tokenizer(), max_tokens=40, system=None)
    examples = [
        example("i lost", "how", "your exam"),
        example("i lost", response="  "),
        example("dog " * 30, "how hard", "your exam"),
        example("i lost", response="so " * 60),
        example("i " * 50),
    ]
    found = list(renderer.render_many(examples))
    for one, each in zip(examples, found, strict=True):
        if isinstance(each, RowRefused):
            with pytest.raises(RowRefused) as error:
                renderer.render(one)
            assert error.value.reason == each.reason
        else:
            assert renderer.render(one) == each
    assert [isinstance(each, RowRefused) for each in found] == [False, True, False, True, False]
    assert [each.cut_turns for each in found if not isinstance(each, RowRefused)] == [0, 1, 1]

"""A tokenizer of some thirty words for tests that need no file of it."""

from typing import Any

WORDS = (  # noqa: SIM905 - thirty quoted words would be harder to read
    "i am so sorry happy sad glad you lost won your dog job exam how why did it feel that is hard great plan maybe"
).split()
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }} <|end|> {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)


def make_tokenizer(template: str | None = TEMPLATE) -> Any:
    """Whole words; roles and the end of a turn are tokens of their own."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<s>", "</s>"]
    vocabulary = {word: index for index, word in enumerate([*special, *WORDS, "Speaker:", "Listener:"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    found = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<|pad|>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=special[2:6],
    )
    found.chat_template = template
    return found

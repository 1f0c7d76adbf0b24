"""A tokenizer of Qwen's kind with a token for every byte."""

from transformers import Qwen2Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

MARKS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer(*more: str) -> Qwen2Tokenizer:
    """A token for every byte, Qwen's marks of a chat, and ``more`` tokens."""
    marks = [*MARKS, *more]
    letters = [*bytes_to_unicode().values(), *marks]
    words = Qwen2Tokenizer(vocab={letter: i for i, letter in enumerate(letters)}, merges=[])
    words.add_special_tokens({"additional_special_tokens": marks})
    words.chat_template = TEMPLATE
    return words

"""The tokenizer of tiny-glm: byte-level BPE over English and 22 languages, with a GLM-style chat template.

Reads the raw text of `data_recipes.corpus`; writes the files of a Hugging Face tokenizer.
"""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>")
END = "<|endoftext|>"
# Digits are cut as a number is read in India: crore, lakh and thousand in pairs, the hundred alone, the last
# two together (12345678 -> 1 23 45 6 78): grouping and reading an amount is then a matter of copying tokens.
DIGITS = r"\p{Nd}{1,2}(?=(?:\p{Nd}{2})*\p{Nd}{3}(?!\p{Nd}))|\p{Nd}(?=\p{Nd}{2}(?!\p{Nd}))|\p{Nd}{1,2}"
# Marks (\p{M}) and joiners belong to the word: the usual patterns cut Indic words at their vowel signs.
LETTERS = r"[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}\u200c\u200d]+"
WORDS = rf"{LETTERS}|{DIGITS}|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+|\s*[\r\n]+|\s+"
# The answer and its stop token are inside the generation marks: a stop token that is never trained never
# comes.
CHAT_TEMPLATE = (
    "[gMASK]<sop>"
    "{%- for message in messages %}"
    "{%- if message['role'] == 'assistant' %}"
    "{{- '<|assistant|>\n' }}{% generation %}{{ message['content'] + '<|endoftext|>' }}{% endgeneration %}"
    "{%- else %}"
    "{{- '<|' + message['role'] + '|>\n' + message['content'] }}"
    "{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>\n' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocabulary_size: int) -> PreTrainedTokenizerFast:
    """Train the tokenizer on texts; the same texts in the same order give the same tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return wrap(tokenizer)


def wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Return the tokenizer as transformers wants it; eos and pad are `<|endoftext|>`."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END,
        additional_special_tokens=[token for token in SPECIAL_TOKENS if token != END],
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast

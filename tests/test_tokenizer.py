"""Nothing is lost in any language, numbers are cut as they are read, and exactly the answer is marked."""

import datetime

import pytest
from transformers import AutoTokenizer

from data_recipes.languages import LANGUAGES
from data_recipes.locale_facts import long_date, territories
from finetune.tokenizer import END, SPECIAL_TOKENS, train_tokenizer

QUESTION, ANSWER = "தேதி 2026-03-14 முழுமையாக எழுதவும்.", "14 மார்ச், 2026"
CHAT = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]


def texts():
    """A few lines in each of the 23 languages."""
    days = [datetime.date(2026, month, 14) for month in range(1, 13)]
    for code, language in LANGUAGES.items():
        yield "\n".join(long_date(day, code) for day in days)
        yield " ".join([language.native_name, *list(territories(code).values())[:40]])


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(texts(), 1200)


def ids(tokenizer, text):
    return tokenizer(text)["input_ids"]


@pytest.mark.parametrize("code", LANGUAGES)
def test_text_of_every_language_comes_back_exactly(tokenizer, code):
    names = list(territories(code).values())[40:90]
    text = f"{long_date(datetime.date(1999, 12, 31), code)} — {', '.join(names)}"
    assert tokenizer.decode(ids(tokenizer, text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "क्\u200dष ನ್\u200cಗ ന്\u200d",
        "  two  spaces,\ttab\r\nand lines\n\n\n",
        "₹12,34,567.00 ½ ² 😀 한국어",
        "हाँ , नहीं ! it 's n't",
        "",
        "\u0bcd stray mark",
    ],
)
def test_joiners_white_space_and_unseen_characters_come_back_exactly(tokenizer, text):
    assert tokenizer.decode(ids(tokenizer, text)) == text


def test_a_frequent_word_is_one_token_with_all_its_vowel_signs():
    # The usual patterns cut before a mark (\p{M}): no token could then hold the whole word.
    words = ["மார்ச்", "हिन्दी", "కిలోమీటర్లు", "ಮೀಟರ್\u200cಗಳು"]
    tokenizer = train_tokenizer([" ".join(words * 50)], 400)
    for word in words:
        assert len(ids(tokenizer, f" {word}")) == 1


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("7", "7"),
        ("45", "45"),
        ("345", "3 45"),
        ("2026", "2 0 26"),
        ("12345", "12 3 45"),
        ("123456", "1 23 4 56"),
        ("1234567", "12 34 5 67"),
        ("12345678", "1 23 45 6 78"),
        ("₹12,34,567", "₹ 12 , 34 , 5 67"),
        ("17:45", "17 : 45"),
        ("2026-03-14", "2 0 26 - 03 - 14"),
        ("௧௨௩௪௫", "௧௨ ௩ ௪௫"),
        ("ab12,200", "ab 12 , 2 00"),  # "200c" stands in the pattern's escapes: no letters of a word
    ],
)
def test_numbers_are_cut_as_they_are_read_in_crore_lakh_thousand_and_hundred(tokenizer, text, cut):
    pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    assert [text[start:end] for _, (start, end) in pieces] == cut.split()


def test_joiners_do_not_cut_a_word(tokenizer):
    text = "ಮೀಟರ್\u200cಗಳು क्\u200dष"
    pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    assert [text[start:end] for _, (start, end) in pieces] == ["ಮೀಟರ್\u200cಗಳು", " क्\u200dष"]


def test_special_tokens_come_first_and_end_is_the_stop_and_the_padding(tokenizer):
    assert [tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS] == list(range(6))
    assert (tokenizer.eos_token, tokenizer.pad_token) == (END, END)
    assert ids(tokenizer, "[gMASK]<sop><|user|>") == [1, 2, 4]


def test_the_chat_layout_is_glms(tokenizer):
    text = tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert text == f"[gMASK]<sop><|user|>\n{QUESTION}<|assistant|>\n{ANSWER}<|endoftext|>"
    prompt = tokenizer.apply_chat_template(CHAT[:1], tokenize=False, add_generation_prompt=True)
    assert text == f"{prompt}{ANSWER}<|endoftext|>"
    system = [{"role": "system", "content": "S"}, *CHAT]
    assert tokenizer.apply_chat_template(system, tokenize=False).startswith(
        "[gMASK]<sop><|system|>\nS<|user|>\n"
    )


def test_the_mask_marks_the_answer_and_its_stop_token_and_nothing_else(tokenizer):
    twice = [*CHAT, {"role": "user", "content": "?"}, {"role": "assistant", "content": "இல்லை"}]
    found = tokenizer.apply_chat_template(
        twice, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    marks = zip(found["input_ids"], found["assistant_masks"], strict=True)
    trained = [token for token, mark in marks if mark]
    assert tokenizer.decode(trained) == f"{ANSWER}<|endoftext|>இல்லை<|endoftext|>"
    assert len(trained) < len(found["input_ids"])


def test_a_prompt_is_the_beginning_of_the_whole_chat_in_tokens(tokenizer):
    prompt = tokenizer.apply_chat_template(CHAT[:1], add_generation_prompt=True, return_dict=True)[
        "input_ids"
    ]
    whole = tokenizer.apply_chat_template(CHAT, return_dict=True)["input_ids"]
    assert whole[: len(prompt)] == prompt


def test_the_same_texts_give_the_same_tokenizer(tokenizer):
    again = train_tokenizer(texts(), 1200)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    other = train_tokenizer(list(texts())[:6], 1200)
    assert other.backend_tokenizer.to_str() != tokenizer.backend_tokenizer.to_str()


def test_the_saved_tokenizer_reads_and_templates_alike(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert ids(loaded, QUESTION) == ids(tokenizer, QUESTION)
    assert loaded.apply_chat_template(CHAT, tokenize=False) == tokenizer.apply_chat_template(
        CHAT, tokenize=False
    )
    assert loaded.decode(ids(loaded, "it 's , हाँ !")) == "it 's , हाँ !"

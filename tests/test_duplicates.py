"""Duplicates: what is one, which of two stays, whatever the order, and how much memory a row takes."""

import itertools
import random
import resource
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from data_recipes.artefact import UserError
from data_recipes.screening import duplicates
from data_recipes.screening.candidates import BYTES_PER_ROW, save_signatures
from data_recipes.screening.comparison import contents, grapheme_shingles
from data_recipes.screening.duplicates import (
    DuplicateOptions,
    drop_duplicates,
    find_duplicates,
    signatures,
    without_duplicates,
)
from data_recipes.steps import Rejected
from tests.test_comparison import MINIMAL_PAIRS

HINDI = "मेरा नाम राहुल है और मैं दिल्ली में रहता हूँ और रोज़ सुबह पार्क में घूमने जाता हूँ"
ROMANISED = "mera naam rahul hai aur main dilli mein rehta hoon aur roz subah park mein ghumne jaata hoon"
VOCABULARY = "घर पानी किताब सुबह शाम लड़का लड़की रास्ता पेड़ नदी पहाड़ बाज़ार काम खाना दूध चाय दिन रात देश शहर"
WORDS = VOCABULARY.split()


def row(row_id: str, text: str, language: str = "hi", script: str = "Deva") -> dict:
    return {
        "id": row_id,
        "language": language,
        "script": script,
        "messages": [{"role": "user", "content": text}],
    }


def outcome(rows: list[dict], options: DuplicateOptions | None = None) -> dict[str, tuple[str, str]]:
    done = list(drop_duplicates(lambda: iter(rows), options))
    assert [item.row_id if isinstance(item, Rejected) else item["id"] for item in done] == [
        r["id"] for r in rows
    ]
    return {item.row_id: (item.reason, item.detail) for item in done if isinstance(item, Rejected)}


def sentences(n: int, seed: int, length: int = 25) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=length)) for _ in range(n)]


def test_rows_with_one_key_are_exact_duplicates_and_one_stays():
    rows = [row("a", "२५ किताबें"), row("b", "25  किताबें "), row("c", "26 किताबें"), row("d", "25 किताबें")]
    gone = outcome(rows)
    assert len(gone) == 2 and gone.keys() < {"a", "b", "d"}
    (kept,) = {"a", "b", "d"} - gone.keys()
    assert set(gone.values()) == {("exact duplicate", f"of {kept}")}


def test_minimal_pairs_are_never_exact_duplicates():
    texts = dict.fromkeys(text for pair in MINIMAL_PAIRS for text in pair)
    assert len(texts) == 2 * len(MINIMAL_PAIRS)
    assert outcome([row(str(i), text) for i, text in enumerate(texts)]) == {}


def test_the_same_words_in_another_role_are_another_row():
    one, other = row("a", "हाँ"), row("b", "हाँ")
    other["messages"][0]["role"] = "assistant"
    assert outcome([one, other]) == {}


def test_a_changed_word_is_a_near_duplicate_and_a_changed_number_is_another_row():
    assert outcome([row("a", HINDI), row("b", HINDI + " जी")]).popitem()[1][0] == "near duplicate"
    numbered = [row("a", HINDI + " 45"), row("b", HINDI + " ४६")]
    assert outcome(numbered) == {}
    assert len(outcome(numbered, DuplicateOptions(numbers_must_match=False, similarity=0.75))) == 1


def test_short_texts_are_compared_whole_only():
    assert outcome([row("a", "मुंबई की राजधानी"), row("b", "मुंबई की राजधानी?")]) == {}


def test_a_romanised_twin_goes_in_its_language_and_only_where_asked():
    pair = [row("a", HINDI), row("b", ROMANISED, "hi-Latn", "Latn")]
    assert outcome(pair).popitem()[1][0] == "twin duplicate"
    assert outcome(pair, DuplicateOptions(twins="keep")) == {}
    assert outcome([pair[0], row("b", ROMANISED, "mr-Latn", "Latn")]) == {}


def test_the_outcome_is_the_same_in_every_order():
    texts = [HINDI, HINDI + " जी", HINDI + " जी हाँ", "आज " + HINDI, ROMANISED]
    rows = [
        row(f"r{i}", text, *(("hi-Latn", "Latn") if text is ROMANISED else ()))
        for i, text in enumerate(texts)
    ]
    rows.append(row("r5", HINDI))
    orders = [rows, rows[::-1], *(random.Random(i).sample(rows, len(rows)) for i in range(30))]
    outcomes = [outcome(order) for order in orders]
    assert len(outcomes[0]) >= 3
    assert all(o == outcomes[0] for o in outcomes)


def test_signatures_of_parts_stack_to_those_of_the_whole():
    rows = [row(str(i), text) for i, text in enumerate(sentences(20, 1))]
    options = DuplicateOptions()
    parts = np.concatenate([signatures(rows[:7], options), signatures(rows[7:], options)])
    assert np.array_equal(parts, signatures(rows, options))
    assert parts.shape[1] * 4 == BYTES_PER_ROW == 260


def test_files_of_parts_in_any_order_give_what_the_array_gives(tmp_path: Path):
    texts = [*sentences(60, 8), HINDI, HINDI + " जी", HINDI, HINDI + " जी हाँ"]
    rows = [row(str(i), text) for i, text in enumerate(texts)]
    rows.append(row("twin", ROMANISED, "hi-Latn", "Latn"))
    options = DuplicateOptions()
    paths = []
    for start, end in ((0, 7), (7, 7), (7, 62), (62, len(rows))):
        paths.insert(0, tmp_path / f"{start}-{end}.npy")
        save_signatures(paths[0], signatures(rows[start:end], options))
    found = find_duplicates(paths, lambda: iter(rows), options)
    assert {duplicate.kind for duplicate in found.values()} == {"exact", "near", "twin"}
    assert found == find_duplicates(signatures(rows, options), lambda: iter(rows[::-1]), options)
    # A part needs to know of its own rows only.
    part = {gone: duplicate for gone, duplicate in found.items() if gone in {r["id"] for r in rows[62:]}}
    done = list(without_duplicates(rows[62:], part, options))
    assert [item.row_id for item in done if isinstance(item, Rejected)] == [
        r["id"] for r in rows[62:] if r["id"] in found
    ]
    assert len(list(tmp_path.iterdir())) == len(paths)
    assert find_duplicates([], lambda: iter([]), options) == {}


def test_a_full_disk_is_one_message(tmp_path: Path):
    rows = [row(str(i), HINDI + " जी" * i) for i in range(3)]
    save_signatures(tmp_path / "0.npy", signatures(rows, DuplicateOptions()))
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, former[1]))
    try:
        with pytest.raises(
            UserError, match="cannot keep what is compared of possible duplicates: File too l"
        ):
            find_duplicates([tmp_path / "0.npy"], lambda: iter(rows), DuplicateOptions())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)


def test_near_duplicates_are_those_of_true_jaccard_similarity_over_all_pairs():
    """The oracle compares all pairs of shingle sets, in the same order of ids, without any MinHash."""
    rng = random.Random(7)
    rows = []
    for i, text in enumerate(sentences(25, 2)):
        words = text.split()
        rows.append(row(f"{i}", text))
        for copy, n_changed in enumerate((1, 2, 4, 7)):
            changed = list(words)
            for place in rng.sample(range(len(words)), n_changed):
                changed[place] = rng.choice(WORDS)
            rows.append(row(f"{i}-{copy}", " ".join(changed)))
    options = DuplicateOptions()
    found = find_duplicates(signatures(rows, options), lambda: iter(rows), options)
    shingles = {r["id"]: grapheme_shingles(contents(r)[0][1], options.shingle_graphemes) for r in rows}

    def jaccard(a: str, b: str) -> float:
        return len(shingles[a] & shingles[b]) / len(shingles[a] | shingles[b])

    assert len(found) > 20
    assert all(jaccard(gone, duplicate.kept) >= options.similarity for gone, duplicate in found.items())
    stays = [r["id"] for r in rows if r["id"] not in found]
    assert {d.kept for d in found.values()} <= set(stays)
    assert [(a, b) for a, b in itertools.combinations(stays, 2) if jaccard(a, b) >= options.similarity] == []


def test_a_row_takes_its_hashes_and_no_more():
    rows = (row(str(i), text) for i, text in enumerate(sentences(4000, 3, length=5)))
    options = DuplicateOptions(twins="keep")
    signatures((row(str(i), "क") for i in range(10)), options)
    tracemalloc.start()
    try:
        table = signatures(rows, options)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(table) == 4000
    # A growing buffer is copied at times: twice its size at most. The rows themselves are made one by one.
    assert held < 1.2 * 4000 * BYTES_PER_ROW + 2_000_000
    assert peak < 2.4 * 4000 * BYTES_PER_ROW + 2_000_000


def test_rows_of_one_template_are_compared_with_a_bounded_number_of_others(monkeypatch):
    rng = random.Random(5)
    template = "कृपया बताइए कि {} और {} का {} से क्या संबंध है और यह हमारे जीवन में क्यों ज़रूरी माना जाता है"
    rows = [row(str(i), template.format(*rng.sample(WORDS, 3))) for i in range(600)]
    n_compared = 0
    compare = duplicates._compare

    def counted(*arguments):
        nonlocal n_compared
        n_compared += 1
        return compare(*arguments)

    monkeypatch.setattr(duplicates, "_compare", counted)
    outcome(rows, DuplicateOptions(similarity=0.99))
    assert 1000 < n_compared <= 600 * duplicates.MAX_COMPARED < 600 * 599 / 2


def test_two_rows_with_one_id_are_an_error():
    with pytest.raises(UserError, match="two rows have the id 'a'"):
        outcome([row("a", "एक"), row("b", "दो"), row("a", "तीन")])


def test_half_a_character_from_json_stops_nothing():
    gone = outcome([row("a", HINDI + "\ud83d"), row("b", HINDI), row("\ud83d", HINDI + "\ud83d")])
    assert sorted(reason for reason, _ in gone.values()) == ["exact duplicate", "near duplicate"]


def test_no_rows_have_no_duplicates():
    assert outcome([]) == {}


def test_wrong_options_are_named_together():
    with pytest.raises(UserError, match=r"similarity=1.5 .*min_shingles=0 .*twins='both'"):
        DuplicateOptions(similarity=1.5, min_shingles=0, twins="both")  # type: ignore[arg-type]

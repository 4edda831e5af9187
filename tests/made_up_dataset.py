"""A small dataset folder with a manifest and samples, made by hand from the build's keys."""

import datasets
from datasets import Dataset, DatasetDict, Features, Value

ATTRIBUTION = "Made-up Chats by A. Author and B. Author (https://example.org/made_up), CC BY 4.0"
HASH = "ab" * 32
MESSAGES = datasets.List({"role": Value("string"), "content": Value("string"), "extra": Value("string")})
TEXT = ("id", "language", "script", "form", "source", "licence", "attribution", "transforms")
FEATURES = Features(
    {"messages": MESSAGES, "phrasing": Value("int32"), "may_commit": Value("bool")}
    | {name: Value("string") for name in TEXT}
)
HINDI = [
    {"role": "user", "content": "स्वतंत्रता दिवस कब है?"},
    {"role": "assistant", "content": "15 अगस्त को।"},
]
URDU = [
    {"role": "user", "content": "When is Independence Day?"},
    {"role": "assistant", "content": "یوم آزادی 15 اگست کو ہے۔"},
]


def made_up_row(number, language="hi", script="Deva", messages=HINDI):
    return {
        "id": f"made-up/{language}/{number}",
        "messages": [{**one, "extra": None} for one in messages],
        "phrasing": 0,
        "may_commit": True,
        "language": language,
        "script": script,
        "form": "native",
        "source": "made-up",
        "licence": "CC-BY-4.0",
        "attribution": "A. Author",
        "transforms": "[]",
    }


def save_made_up(folder):
    """Save three rows for training, one for validation and one for the test, as the build does."""
    rows = {
        "train": [made_up_row(1), made_up_row(2), made_up_row(3, "ur", "Arab", URDU)],
        "validation": [made_up_row(4)],
        "test": [made_up_row(5)],
    }
    datasets.disable_progress_bars()
    splits = {}
    for split, of_split in rows.items():
        table = Dataset.from_list(of_split, features=FEATURES).data
        splits[split] = Dataset(table, fingerprint=f"{split:0<16}")
    DatasetDict(splits).save_to_disk(str(folder))
    return rows


def form_numbers(rows, tokens=None):
    words = 8 * rows
    return {
        "rows": rows,
        "messages": 2 * rows,
        "words": words,
        "graphemes": 4 * words,
        "tokens": tokens,
        "tokens_per_word": tokens / words if tokens else None,
        "tokens_per_grapheme": tokens / (4 * words) if tokens else None,
    }


def made_up_manifest(**changed):
    """The body of a manifest with every key of the build."""
    return {
        "recipe": {"languages": [], "translate": None, "pii": {"policy": "tag"}, "text": {"form": "nfc"}},
        "content_hash": HASH,
        "n_rows": {"train": 3, "validation": 1, "test": 1},
        "counts": {
            "train": {"hi/chat": 2, "ur/chat": 1},
            "validation": {"hi/chat": 1},
            "test": {"hi/chat": 1},
        },
        "dropped": {"hi/date: the answer fails its own checker": 2},
        "sources": {
            "made-up": {
                "revision": "0123abcd",
                "licence": "CC-BY-4.0",
                "licence_from": "dataset card",
                "attribution": ATTRIBUTION,
            },
            "babel": {"version": "2.18.0", "licence": "Unicode-3.0", "what": "CLDR: names and dates"},
        },
        "split_rule": "by the hash of the id of the row it was made from",
        "languages": {"hi-Deva": form_numbers(4, 128), "ur-Arab": form_numbers(1, 24)},
        "licences": {"CC-BY-4.0": 4, "Unicode-3.0": 1},
        "rejected": {"text": {"bad encoding": 3}, "duplicates": {"near": 5, "exact": 11}},
        "steps": [
            {
                "name": "text",
                "version": 1,
                "options": {"form": "nfc"},
                "n_in": 30,
                "n_out": 27,
                "n_rejected": 3,
            },
            {"name": "pii", "version": 2, "options": {}, "n_in": 27, "n_out": 27, "n_rejected": 0},
            {
                "name": "duplicates",
                "version": 1,
                "options": {"share": 0.8},
                "n_in": 27,
                "n_out": 11,
                "n_rejected": 16,
            },
        ],
        "pii": {"AADHAAR": {"hi": 2, "ur": 1}, "PHONE": {"hi": 40}},
        "mix": {
            "wanted": {"native": 0.75, "romanised": 0.25},
            "written": {"native": 0.8, "romanised": 0.2},
            "measured": {"native": 0.8, "romanised": 0.2},
            "languages": {"hi": {"native": 1234, "romanised": 310}, "ur": {"native": 6}},
            "kept": {},
        },
        "translation": None,
        "test_sets": {"indic-qa": 1200},
        "tokenizer": {"name": "zai/GLM", "sha256": "cd" * 32},
        "masks": {"n_tokens": 152, "n_trained": 61, "longest": 48},
        **changed,
    }


def made_up_samples(**changed):
    """Samples with a change one sees, one the eye cannot see, and one of which only the end is shown."""
    visible = [{**HINDI[0], "content": "स्वतंत्रता दिवस कब है  ?"}, HINDI[1]]
    nukta = [{"role": "user", "content": "\u0928\u093cमक कितना?"}]
    composed = [{"role": "user", "content": "\u0929मक कितना?"}]
    return {
        "steps": {
            "text": [
                {"row_id": "made-up/hi/1", "language": "hi-Deva", "before": visible, "after": HINDI},
                {"row_id": "made-up/hi/2", "language": "hi-Deva", "before": composed, "after": nukta},
            ],
            "pii": [{"row_id": "made-up/ur/3", "language": "ur-Arab", "after": URDU}],
        },
        "rows": [made_up_row(1), made_up_row(3, "ur", "Arab", URDU)],
        **changed,
    }

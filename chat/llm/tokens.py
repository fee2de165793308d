"""Estimates of token counts from UTF-8 bytes: no tokenizer fits every provider's models."""

from __future__ import annotations

import math

# Bytes of UTF-8 per token, a low average of measurements on current models: English has 4 to 5,
# code and other scripts about 3. A low figure overestimates tokens: prompts stay inside the window.
BYTES_PER_TOKEN = 3

# Two more figures for money: the average of text, so that users do not pay for an overestimate, and
# a minimum that hardly any text falls below, so that a hold covers the prompt. Code has 2 bytes of
# ASCII per token, rare East Asian characters 1.5.
TYPICAL_BYTES_PER_TOKEN = 4
MIN_BYTES_PER_TOKEN = 1.5
TOKENS_PER_MESSAGE = 8  # role and separators of the chat template


def count_tokens(text: str) -> int:
    """Estimate a message's tokens, too high rather than too low for most text."""
    return TOKENS_PER_MESSAGE + math.ceil(len(text.encode()) / BYTES_PER_TOKEN)


def typical_tokens(text: str) -> int:
    """Estimate a text's tokens: the figure that is charged when the provider reports no usage."""
    return math.ceil(len(text.encode()) / TYPICAL_BYTES_PER_TOKEN)


def token_upper_bound(text: str) -> int:
    """Estimate a bound that a message's tokens hardly exceed, for the hold."""
    return 2 * TOKENS_PER_MESSAGE + math.ceil(len(text.encode()) / MIN_BYTES_PER_TOKEN)

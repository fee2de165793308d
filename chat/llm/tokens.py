"""Estimates of token counts from UTF-8 bytes: no tokenizer fits every provider's models."""

from __future__ import annotations

import math
import unicodedata
from typing import Literal

# Bytes of UTF-8 per token, a low average of measurements on current models: English has 4 to 5,
# code and other scripts about 3. A low figure overestimates tokens: prompts stay inside the window.
BYTES_PER_TOKEN = 3

# For money: the average of text, so that users do not pay for an overestimate.
TYPICAL_BYTES_PER_TOKEN = 4
TOKENS_PER_MESSAGE = 8  # role and separators of the chat template

# Tokens that the chat template of a model adds to a prompt, such as a system message of its own: the
# longest known one has about 200.
TEMPLATE_TOKENS = 256
# Some tokenizers replace characters by their normal form first, which may be longer.
NORMAL_FORMS: tuple[Literal["NFC", "NFKC"], ...] = ("NFC", "NFKC")


def count_tokens(text: str) -> int:
    """Estimate a message's tokens, too high rather than too low for most text."""
    return TOKENS_PER_MESSAGE + math.ceil(len(text.encode()) / BYTES_PER_TOKEN)


def typical_tokens(text: str) -> int:
    """Estimate a text's tokens: the figure that is charged when the provider reports no usage."""
    return math.ceil(len(text.encode()) / TYPICAL_BYTES_PER_TOKEN)


def token_upper_bound(text: str) -> int:
    """Return a number that a message's tokens do not exceed, for the hold.

    A token of a tokenizer on bytes (BPE, or SentencePiece with byte fallback) is at least one byte.
    Digits, rare characters and white space come down to that with the tokenizers of
    tests/chat/llm/token_counts.json; of English a token has 4 to 5.
    """
    size = len(text)
    if not text.isascii():
        forms = (text, *(unicodedata.normalize(form, text) for form in NORMAL_FORMS))
        size = max(len(form.encode()) for form in forms)
    return 2 * TOKENS_PER_MESSAGE + size

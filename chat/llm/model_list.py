"""The list of a provider's models (`GET /models`) in the shapes of the known servers."""

from __future__ import annotations

import re

# Names of models that answer no chat, in lists that do not tell them apart (OpenAI's, Ollama's).
NOT_CHAT = re.compile(
    r"embed|\bbge\b|\be5-|rerank|whisper|\btts\b|\btts-|transcri|speech|dall-e|\bimage|imagen|\bveo\b|\bsora\b"
    r"|stable-diffusion|\bflux\b|moderation|guard\b|realtime|babbage|davinci|-instruct-0914|computer-use",
    re.IGNORECASE,
)

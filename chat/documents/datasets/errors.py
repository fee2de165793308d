"""Refusals of files and queries, in the sandbox and outside of it."""

from __future__ import annotations

from chatproject.lib.sandbox import Refused


class TableRefused(Refused):
    """A file that becomes no tables; the code is one of chat.documents.datasets.words, with the values of its sentence."""


class QueryRefused(Refused):
    """A query that is not run, or that failed; the sentence is for the model and for programs, in English."""

    def __init__(self, sentence: str) -> None:
        super().__init__("query", sentence=sentence)
        self.sentence = sentence

    def __str__(self) -> str:
        return self.sentence

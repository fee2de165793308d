"""Tests of chat.guarded."""

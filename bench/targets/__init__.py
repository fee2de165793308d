"""Measurements: each module has one subject; its `Target`s have the numbers of users."""

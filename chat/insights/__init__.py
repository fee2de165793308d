"""Paid insights into documents: categories as data, their purchase, their generation by a model, and their cards."""

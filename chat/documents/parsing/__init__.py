"""Parsers of documents. They run in the sandbox alone, and import neither Django nor chat's models."""

"""Statistics of a chat, computed in one pass over its blocks, without a model and with bounded memory.

They run in the sandbox beside the parser, and import neither Django nor chat's models.
"""

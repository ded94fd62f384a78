"""Tokens: tokenizers, chat templates, and texts as ids."""

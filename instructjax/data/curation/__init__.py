"""Curation: the paper's hygiene of collected data, its tables, and what people are to rank."""

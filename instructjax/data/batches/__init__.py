"""Batches: rows of ids, packed, padded, mixed, shuffled and made ahead."""

"""Records, tokenizers, sources and batches: everything between a file and the device."""

"""Records: what files of prompts, demonstrations, comparisons and texts hold, read and checked."""

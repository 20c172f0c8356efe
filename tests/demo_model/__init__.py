"""Tests of the bundled demo model: its text, its tokenizer, its training, and the files that are shipped."""

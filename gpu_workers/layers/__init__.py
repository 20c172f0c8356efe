"""The building blocks of a decoder, each with its own rule for splitting over ranks."""

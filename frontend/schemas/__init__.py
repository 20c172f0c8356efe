"""Wire shapes of the HTTP APIs: what clients may send, and nothing about what happens with it."""

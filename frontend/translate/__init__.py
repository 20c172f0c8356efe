"""Other APIs' requests as chat requests: one file per API, each a pure function from wire shape to ChatRequest."""

"""One file per API: request shape in, engine calls, response shape out."""

"""How a linear layer's weight is held and multiplied: one small class per method, with load, process and apply."""

"""The parts of the sampler: row columns, randomness, what changes logits, which tokens stay, log-probabilities."""

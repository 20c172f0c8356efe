"""All that two quire processes must agree on: messages, config, sampling parameters, errors, channels and shared memory.

Floor 1 of the house (docs/architecture.md): imports nothing of ours but itself, and neither torch nor cupy nor transformers.
"""

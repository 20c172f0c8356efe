"""The worker processes: weights, KV tensors, the forward pass and sampling (docs/architecture.md, The worker).

Floor 2 of the house; meets the scheduler in messages and in the arena only. Start here: run, worker, runner.
"""

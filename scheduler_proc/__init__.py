"""The scheduler process: owns every request's state, the KV blocks, the prefix tree and the policy. No torch.

`Scheduler` (scheduler.py) is pure: no I/O, no clock. `loop.py` is the shell that joins it to sockets and shared memory.
"""

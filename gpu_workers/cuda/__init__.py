"""A step on an NVIDIA GPU: streams and graphs, the plan's way to the device, sampling there, results back without waiting for them."""

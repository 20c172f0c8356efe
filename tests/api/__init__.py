"""The HTTP API as clients see it: real frontend processes, a real scheduler, a worker without a model."""

"""`quire bench`: load for a running server (serve) and for an engine in this process (throughput, latency), with JSON results."""

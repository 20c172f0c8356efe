"""One command that says on a lent GPU what holds: `bash bench/gpu/run_all.sh` (README.md). Each part is a program of its own.

The kernel parts need torch, CuPy and numpy alone; only `engine` needs what quire's processes need.
"""

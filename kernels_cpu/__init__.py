"""Kernels for the CPU: numba sources, the process that compiles them, and the flat images of machine code that a worker maps.

Imports nothing of ours; the workers alone use it. A worker needs the layouts, features, images and cache, none of which imports numba;
everything that does is imported by the compiling process (build.py).
"""

"""Turns src/*.cu into cubins with NVRTC, without a driver or a GPU, and says what each kernel uses of the machine.

`python -m kernels_cuda.build` before a wheel is built puts every cubin into kernels_cuda/_cubin, which the wheel
carries; `--check` is CI's. Where a cubin is missing or its source has changed, the first launch compiles it into the user's cache.
"""

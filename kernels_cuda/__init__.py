"""CUDA C++ kernels and their launchers. They take raw pointers and scalars, and import nothing else of quire.

src/*.cu are compiled by `kernels_cuda.build` (NVRTC) and launched through `kernels_cuda.launch`; one launcher module per source
checks shapes and says which variants exist; `kernels_cuda.reference` says in plain torch what each computes.

To add a kernel: write src/name.cu (rules: tests/cuda_on_cpu/include/cuda_on_cpu.h) and the op in reference.py; write name.py with a
SOURCE (variants, register budgets) and a launcher that checks shapes and calls launch(); add its SOURCE to catalogue.py, and a
tests/cuda_on_cpu/test_name.py that runs the launcher under emulated() with a few planted bugs and a case in race_run.py.
"""

"""Self-selected decode attention on CUDA: reads exactly the tokens that a step's intervals name.

`attention.SpanAttention` is the way in. The kernels are CUDA C++ (`plan.cu`, `attention.cu`), which CuPy
compiles at run time.
"""

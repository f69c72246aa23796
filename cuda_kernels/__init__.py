"""Self-selected decode attention on CUDA: reads exactly the tokens that a step's intervals name.

`attention.SpanAttention` is the way in, for a paged cache `paged.PagedAttention`. The kernels are CUDA C++ (`plan.cu`,
`plan_pages.cu`, `attention.cu`), which CuPy compiles at run time.
"""

"""`python -m cuda_kernels.bench`: the attention kernel against its peers."""

from cuda_kernels.bench.attention import main

if __name__ == "__main__":
    main()

"""The Triton kernels, checked without a GPU: races in their PTX, the bounds of accesses, and what starts early."""

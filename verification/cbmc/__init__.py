"""Bounds of the Metal kernels, proven for all sizes: CBMC on the index headers that the kernels include, and z3."""

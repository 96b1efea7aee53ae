"""Steel kernels in Metal: run through ``torch.mps`` on an Apple GPU, and through ``steelworks.metalsim`` on a CPU.

A folder holds the Metal of one family, the module of the same name its host functions; ``tuning`` says which variant
runs when, ``_launch`` compiles and launches, ``include/steel`` is what all families share.
"""

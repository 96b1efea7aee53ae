"""The Steel kernels: our own implementations without shared state, for the paths that PyTorch lacks or does slowly."""

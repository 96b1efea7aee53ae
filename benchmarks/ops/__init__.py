"""Cases of the operator benchmark: a module a family, listed in ``benchmarks.ops_h200``."""

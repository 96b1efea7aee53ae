"""The systems that are measured against each other: one module each, all behind ``System``."""

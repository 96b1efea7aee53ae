"""Tests of the operations; a package, since test files elsewhere have the same names."""

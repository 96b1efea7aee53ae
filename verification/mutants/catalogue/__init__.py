"""A catalogue of planted bugs across all layers: the measure of the whole evidence.

``python -m verification.mutants.catalogue`` from the project's root plants each in a copy of the project and runs the
check that it names, which must notice; ``--help`` says more. The bugs are data, in the ``*.toml`` files beside this
one; README.md says what an entry holds and what counts as caught.
"""

"""TLA+ models of the runtime, checked by TLC and bound to the running code.

Each model (``*.tla``) names its actions after the steps that the code announces through :mod:`steelworks.seam`.
What this package does with them:

* ``tlc.py`` finds Java and TLC and runs a model in one configuration; ``models.py`` lists the configurations, with
  the exit code and the number of states that each must have.
* ``graph.py`` reads the whole state graph that TLC wrote.
* ``control.py`` runs real threads one at a time, from one announced point to the next.
* ``replay.py`` walks over every edge of a graph, takes each step on the real code, and compares what can be seen of
  the code with the model's state after each. ``pool_replay.py`` and ``queue_replay.py`` know the two components.
* ``gemm_programs.py`` records the Metal gemm kernels as they run in metalsim: the programs of SteelGEMM.tla's threads.
  ``paths_replay.py`` replays Paths.tla on the device of the Apple GPU and the path selector, on a stand-in for torch.
* ``traces.py`` records what the test suite does to the code and has TLC follow it.

``python -m verification.tla`` runs all of it and prints a table.
"""

from __future__ import annotations

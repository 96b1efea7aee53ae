"""Packing: run an encoder on a padded batch without padding in its linear layers.

:func:`install` finds the Hugging Face encoders inside a user's module and puts a packing forward in
front of each. A padded batch [rows, columns] then goes through the encoder as one sequence of its
real tokens; only attention sees where one row ends and the next begins. The encoder's outputs are
padded again, so what follows in the user's module (pooling, heads) runs unchanged.

Promises
* An encoder is packed only after a trial on install showed that packing gives the padded answer;
  :func:`verify` tries the same for the user's whole module.
* A call that packing can't serve (gradients, training, attention weights asked for, an unusual mask)
  runs padded, as if nothing were installed. So does a call whose packed run fails.
* Nothing about a call is kept on the module: any number of threads may call one instance.
* :meth:`PackingHandle.remove` puts the module back as it was.

What differs from the padded run: positions whose mask is 0 hold zeros instead of values computed from
padding, and hooks registered on submodules *inside* an encoder after install see packed tensors,
[1, tokens, hidden].
"""

from __future__ import annotations

from steelworks.plans.packing._context import disabled
from steelworks.plans.packing._install import PackingHandle, install
from steelworks.plans.packing._verify import VerifyReport, verify

__all__ = ["PackingHandle", "VerifyReport", "disabled", "install", "verify"]

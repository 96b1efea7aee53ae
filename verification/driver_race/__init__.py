"""The race of the GPU driver and the guard against it, reproduced without a Mac.

``steelworks/devices/_driver_guard/guard.m``, which Macs compile, is compiled here with GCC's Objective-C runtime, the
one that Debian's GNUstep stands on, over a stand-in of the driver (``objc/standin.m``): the same messages, and books
of the process that are kept without a lock, in two halves, as Apple's are said to be.

* ``objc/scenes.m``: a few threads in an order that the scene enforces. Without the guard they crash, corrupt the books,
  or ThreadSanitizer reports them, every time; with it they are clean.
* ``follow.py``: what happened in a scene, step by step, is followed by TLC through DriverRace.tla, and so is what the
  threads do without the guard: there it is a behaviour of the model in which the guard is missing.
* ``planted.toml``: mistakes of the guard, each of which a scene must notice.

``python -m verification.driver_race`` runs all of it. What it can't show is what Apple's driver really does.
"""

from __future__ import annotations

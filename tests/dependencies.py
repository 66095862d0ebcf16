"""What a user installs with us: `python tests/dependencies.py [--write]` compares it with dependencies.txt, and asks pip-audit where it is.

A package that nobody looked at, a licence that changed, or one that asks for more than a notice is an error.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

KEPT = Path(__file__).with_name("dependencies.txt")

#: Of what is needed to run; tests, documents and rivals stay on the developer's machine.
EXTRAS = ("cli", "plots", "data", "train")
PERMISSIVE = re.compile(r"BSD|MIT|Apache|PSF|Python Software Foundation|Zlib|CC0|ISC|HPND|MPL-2.0")
#: Those of NVIDIA come with a CUDA torch, under NVIDIA's own licence, and are torch's to name.
WITH_TORCH = re.compile(r"nvidia-|cuda-|triton$")


def name_of(text: str) -> str:
    return re.sub(r"[-_.]+", "-", text).lower()


def asked() -> list[Requirement]:
    """The package's own requirements, those of its extras among them."""
    found = [Requirement(line) for line in metadata.requires("sparsekern") or []]
    wanted = [r for r in found if r.marker is None or any(r.marker.evaluate({"extra": extra}) for extra in EXTRAS)]
    return [r for r in wanted if r.name != "sparsekern"]


def installed() -> dict[str, metadata.Distribution]:
    """All that these need in turn, by name. A package that is absent here, an extra's, is left out."""
    found: dict[str, metadata.Distribution] = {}
    todo = asked()
    while todo:
        requirement = todo.pop()
        if (name := name_of(requirement.name)) in found or WITH_TORCH.match(name):
            continue
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        needs = [Requirement(line) for line in found[name].requires or []]
        todo += [r for r in needs if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


def licence(package: metadata.Distribution) -> str:
    """In a few words: an SPDX expression, a classifier, or the first line that says what it is."""
    fields = package.metadata
    if fields.get("License-Expression"):
        return fields["License-Expression"]
    classifiers = [c.split("::")[-1].strip() for c in fields.get_all("Classifier") or [] if c.startswith("License ::")]
    return classifiers[0] if classifiers else (fields.get("License") or "unknown").strip().splitlines()[0]


def report() -> list[str]:
    """What differs from the file that is kept; with nothing to say, nothing."""
    now = {name: licence(package) for name, package in installed().items()}
    kept = dict(line.split(": ", 1) for line in KEPT.read_text().splitlines() if line)
    said = [f"{name} is new: {said} (see it through, then --write)" for name, said in now.items() if name not in kept]
    said += [f"{name}: the licence was {kept[name]}, it is {now[name]}" for name in now if kept.get(name, now[name]) != now[name]]
    said += [f"{name}: {text} is no licence that only asks for a notice" for name, text in now.items() if not PERMISSIVE.search(text)]
    for requirement in asked():
        version = now.get(name_of(requirement.name)) and metadata.version(requirement.name)
        if version and not requirement.specifier.contains(version, prereleases=True):
            said.append(f"{requirement} is not met by {version}")
    return said


def main() -> int:
    packages = installed()
    if "--write" in sys.argv:
        KEPT.write_text("".join(f"{name}: {licence(packages[name])}\n" for name in sorted(packages)))
    for name in sorted(packages):
        print(f"{name:18s} {packages[name].version:14s} {licence(packages[name])}")
    said = report()
    print("\n".join(said) or f"{len(packages)} packages, all of them looked at")
    faults, not_asked = known_faults({name: package.version.partition("+")[0] for name, package in packages.items()})
    print(*faults, sep="\n", end="\n" if faults else "")
    if not_asked:
        note(f"known faults of these versions were not looked up: {not_asked}")
    return bool(said or faults)


def known_faults(versions: dict[str, str]) -> tuple[list[str], str]:
    """(faults that a service knows of, why some packages were not looked up). pip-audit passes what its service has not."""
    if not importlib.util.find_spec("pip_audit"):
        return [], "pip-audit is not installed"
    pins = "\n".join(f"{name}=={versions[name]}" for name in sorted(versions))
    audit = [sys.executable, "-m", "pip_audit", "--disable-pip", "--no-deps", "--progress-spinner=off", "--format=json", "-r", "/dev/stdin"]
    answer = subprocess.run(audit, input=pins, text=True, capture_output=True)
    if not answer.stdout.strip():  # it could not ask, and an audit that was wanted is none
        return [f"pip-audit ended with {answer.returncode}: {answer.stderr.strip()[-500:]}"], ""
    asked_for = json.loads(answer.stdout)["dependencies"]
    faults = [f"{p['name']} {p['version']}: {fault['id']}" for p in asked_for for fault in p.get("vulns", [])]
    left = sorted(set(versions) - {name_of(p["name"]) for p in asked_for if "vulns" in p})
    unknown = f"{len(left)} of {len(versions)}, {', '.join(left)}" if len(left) < len(versions) else f"any of {len(versions)}"
    return faults, f"its service does not know {unknown}" if left else ""


def note(text: str) -> None:
    """Say it, and in the table of tests/run.py too: that nothing failed would hide it."""
    print(text)
    if path := os.environ.get("TEST_TALLY"):
        with open(path, "a") as file:
            file.write(f"0 {text}\n")


if __name__ == "__main__":
    sys.exit(main())

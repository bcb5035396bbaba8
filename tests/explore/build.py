"""How does the core become a program that explores itself? A copy with steps for atomics, and mistakes to choose.

The copy's atomics.hpp is `swapped/atomics.hpp`: checked here to define exactly the functions of the real one, with
its parameters and the memory order that each real one uses. All mistakes of mutants.py are planted in one
copy, as choices made when the program starts, so that they cost one compilation; each must find its text
exactly once, or a changed core would make a mistake vanish unnoticed. Called by test_explore.py.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Final

from tests.explore.mutants import MUTANTS, Mutant
from tests.fuzz.programs import CORE, Program, build

__all__ = ["program"]

HERE: Final = Path(__file__).parent
ORDERS: Final = {"relaxed": "relaxed", "acquire": "acquire", "release": "release", "seq_cst": "seq"}


def program(folder: Path) -> Path:
    """The compiled explorer of the core as it stands. `folder`: scratch, for the copy."""
    swapped = HERE / "swapped" / "atomics.hpp"
    compare(CORE / "atomics.hpp", swapped)
    shutil.copytree(CORE, folder, dirs_exist_ok=True)
    shutil.copy2(swapped, folder)
    for header in {mutant.header for mutant in MUTANTS}:
        path = folder / header
        path.write_text(planted(path.read_text(encoding="utf-8"), header), encoding="utf-8")
    # A mistake may leave something unused, and choices stand on one line.
    flags = ("-O2", "-Wno-unused", "-Wno-misleading-indentation")
    return build(Program(source=HERE / "explore.cpp", flags=flags, core=folder))


def signatures(path: Path) -> dict[str, tuple[str, str]]:
    """Name -> return type and parameters (but for the place in the source), and the order that is used."""
    text = path.read_text(encoding="utf-8").split("namespace pegashm {", 1)[1]
    found = {}
    for kind, name, parameters, body in re.findall(
        r"^inline (\w+) (\w+)\(([^{]*)\) noexcept \{(.*?)^\}", text, flags=re.DOTALL | re.MULTILINE
    ):
        words = re.sub(r",\s*Site site = Site::current\(\)", "", parameters).split()
        used = set(re.findall(r"(?:memory_order_|Order::)(\w+)", body))
        assert len(used) == 1, f"{path}: {name} uses {used}, expected one memory order"
        order = used.pop()
        found[name] = (" ".join([kind, *words]), ORDERS.get(order, order))
    return found


def compare(real: Path, swapped: Path) -> None:
    """AssertionError when the two differ in a function, its parameters or its order."""
    there, here = signatures(real), signatures(swapped)
    assert there, f"{real} defines no function that could be read"
    assert there == here, f"{real} and {swapped} differ: {set(there.items()) ^ set(here.items())}"


def planted(text: str, header: str) -> str:
    """A header with all its mistakes as choices. Larger texts first, so that others may lie inside them."""
    mine = [(number, mutant) for number, mutant in enumerate(MUTANTS, 1) if mutant.header == header]
    mistakes: list[str] = []
    for number, mutant in sorted(mine, key=lambda pair: -len(pair[1].old)):
        count = text.count(mutant.old)
        assert count == 1, f"{header} has {mutant.old!r} {count} times: plant {mutant.name!r} anew"
        text = text.replace(mutant.old, choice(number, mutant, mistakes))
    for place, mistake in enumerate(mistakes):
        text = text.replace(f"\0{place}\0", mistake)
    return text


def choice(number: int, mutant: Mutant, mistakes: list[str]) -> str:
    """What stands in place of `old`. The mistake itself is put in last: it may repeat another's text."""
    mistakes.append(mutant.new)
    new = f"\0{len(mistakes) - 1}\0"
    chosen = f"::explore::planted == {number}"
    if mutant.kind == "text":
        mistakes[-1] = mutant.new.replace("PLANTED", f"({chosen})")
        return new
    if mutant.kind == "expression":
        return f"({chosen} ? ({new}) : ({mutant.old}))"
    if mutant.kind == "before":
        return f"if ({chosen}) {{ {new} }} {mutant.old}"
    return f"if ({chosen}) {{ {new} }} else {{ {mutant.old} }}"

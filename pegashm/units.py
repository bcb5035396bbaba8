"""How does a person write a number of bytes, and how do we write it back?

`64G`, `64GiB`, `65536M` and `68719476736` all mean the same: a bare letter is binary, because that is
what memory is made of; only an explicit decimal unit (`64GB`) is decimal. Called by the command line
and the config file on the way in, and by every message that names a size on the way out.
"""

import re
from typing import Final

from pegashm.errors import ConfigError

__all__ = ["GIB", "KIB", "MIB", "format_bytes", "is_power_of_two", "parse_bytes", "round_up"]

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30

_PATTERN: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGTP]?)(I?B?)", re.IGNORECASE)
_LETTERS: Final = " KMGTP"


def parse_bytes(text: str | int) -> int:
    """Bytes meant by `text`; ConfigError when it is no size, or no whole number of bytes."""
    if isinstance(text, int):
        return text
    match = _PATTERN.fullmatch(text.strip())
    if match is None or (match[3].upper() == "I"):
        raise ConfigError(f"{text!r} is not a size: write for example 64G, 512M or 1.5T")
    decimal = match[2] != "" and match[3].upper() == "B"
    scale = (1000 if decimal else 1024) ** _LETTERS.index(match[2].upper() or " ")
    whole, _, fraction = match[1].partition(".")
    numerator = int(whole + fraction) * scale
    if numerator % 10 ** len(fraction):
        raise ConfigError(f"{text!r} is not a whole number of bytes")
    return int(numerator // 10 ** len(fraction))


def format_bytes(count: int) -> str:
    """The shortest exact binary form (`64 GiB`, `96 MiB`), else one with two digits (`1.37 GiB`)."""
    for power in range(len(_LETTERS) - 1, 0, -1):
        scale = 1 << (10 * power)
        if count >= scale:
            number = f"{count // scale}" if count % scale == 0 else f"{count / scale:.2f}"
            return f"{number} {_LETTERS[power]}iB"
    return f"{count} bytes"


def is_power_of_two(count: int) -> bool:
    return count > 0 and count & (count - 1) == 0


def round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple

"""`python -m pegashm` is the `pegashm` command, for where the script is not on PATH."""

from pegashm.cli import main

__all__: list[str] = []

main(prog_name="pegashm")

"""Read-only tools for operators: installed as `pegashm.tools`, `pegashm-dump` first of all.

Every tool here maps the shared memory read-only, needs no running supervisor, and exits 0 (ok), 1 (a
finding) or 2 (cannot tell). Nothing in the package imports from here.
"""

__all__: list[str] = []

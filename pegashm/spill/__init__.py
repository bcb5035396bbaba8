"""The spill file: blocks on SSD, in a log that describes itself and is reopened after any death.

`format` says what the bytes mean, `opening` which file is ours, `scan` what is in it, `file` how blocks get in
and out, `files` which of several to use, `checksums` whether bytes are those that were stored, `disk` how
they move. Nothing here knows of arenas or the index: blocks are addresses, records are rows. Who decides what is
spilled and promoted is the transport worker. This file imports none of them.
"""

__all__: list[str] = []

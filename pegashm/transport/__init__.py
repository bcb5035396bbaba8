"""The transport worker: one process an arena that does what takes time, so that no engine ever waits for it.

`worker` is the process, started and watched by the supervisor through `keeper`; `tier` the spill files it has open;
`spiller` decides what is written and evicted, with `admission` and `budget`, `writer` does it, a thread a file;
`promoter` brings blocks back. Engines ask through `client`, over the socket of `endpoint`, in the words of `messages`.
Dead, stopped or overloaded, it costs hits: engines never wait for an answer. This file imports none of them.
"""

__all__: list[str] = []

"""`pegashm top`: what is going on in an arena, on a terminal, as it goes.

`rates.py` makes two readings (`pegashm/exporter/reading.py`) into what happened between them, `screen.py` draws that, `loop.py` repeats it and listens to
the keyboard. Reads only; nobody knows that it is watched.
"""

__all__: list[str] = []

"""What does an operator see of an arena? One reading of it, as metrics, as health, and served over HTTP.

`reading.py` looks, `judging.py` says whether all is well, `metrics.py` turns it into Prometheus' terms, `server.py` and
`routes.py` answer HTTP. A process of its own that maps the control region read-only, never the payload, takes no lock
and waits for nobody: it may die, hang or be absent, and it outlives any arena. Nothing on a hot path knows of it.
"""

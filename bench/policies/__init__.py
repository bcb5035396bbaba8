"""Cache policies as fast simulators, the workloads to judge them by, and an oracle for those that have a name.

bench/replay.py compares them with each other, with Belady's optimum, and with the real broker.
"""

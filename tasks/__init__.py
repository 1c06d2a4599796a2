"""The queue: messages, events, scheduling and the Celery workers that speak and assemble files.

Read it in this order: ``settings``, ``messages`` (what travels), ``events`` (what is said about
a job; ``names`` and ``records`` are its keys and how it writes), ``batching`` (who goes next, and
with whom), ``consumer`` (how Celery comes to do so; ``waiting``, ``lanes`` and ``reports`` are its
parts), ``worker`` (the process that owns the device), ``advancing`` (what moves long jobs forward)
and ``files`` (the process that does it, and makes books).
"""

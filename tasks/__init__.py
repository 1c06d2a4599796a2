"""The queue: messages, events, scheduling and the Celery workers that speak and assemble files.

Read it in this order: ``settings``, ``messages`` (what travels), ``events`` (what is said about
a job), ``batching`` (who goes next, and with whom), ``consumer`` (how Celery comes to do so),
``worker`` (the process that owns the device), ``files`` (the process that assembles long jobs).
"""

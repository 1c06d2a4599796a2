"""Supertonic 2: text to 44.1 kHz speech in PyTorch, with no queue and no web in sight.

Read it in this order: ``text`` (chunks) and ``characters`` (to ids), ``config`` (sizes), ``layers``
and the four networks ``duration_predictor``, ``text_encoder``, ``vector_estimator``, ``vocoder``;
then ``model``, which puts them together on one screen; then ``engine``, which is
``synthesize(utterances)`` on a device, and ``loading``, which makes one of files. What a worker
runs is the same model again, made for speed: ``prepared``, of ``kernels`` and ``rows``.
"""

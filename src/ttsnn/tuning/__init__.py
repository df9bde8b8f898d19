"""Tuning by measurement: MetaSchedule searches forms and tiles of layers, a database keeps them.

:mod:`ttsnn.tuning.network` is ``ttsnn.tune``; :mod:`ttsnn.tuning.lookup` is how ``ttsnn.compile``
finds what was tuned.
"""

"""Exams in by HTTP or DICOM, scored by one warm model, results out: what `python -m mammoclip_jax.serve` runs.

spool.py    exams on disk, from their arrival to their deletion; a folder's place is its state
worker.py   the process that holds the model, and how it is watched; scoring.py: what it computes
uploads.py  what an HTTP request brings -> files;  app.py: the HTTP side;  metrics.py
listener.py DICOM in;  sender.py DICOM out
server.py   all of them together, from start to stop
"""

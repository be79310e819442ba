"""What opens an artifact in the fresh process, one file a kind.

`certify/worker.py` loads these files by path, as a stranger to this package: a reloader imports nothing of it, unless it says
`NEEDS_SVE = True` (an artifact that this package itself opens). Each has `answer(folder, asked) -> (outputs, found)`; see
`certify/worker.py` for both.
"""

"""Each command's pipeline as one straight function: this is the Python API.

`workflows.train.train`, `workflows.evaluate.evaluate`, `workflows.export.export`, `workflows.decompose.decompose`.
"""

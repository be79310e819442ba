"""The rows of the table: one module a subject, one function a workload."""

"""What is fitted on held-back predictions and stored with the run."""

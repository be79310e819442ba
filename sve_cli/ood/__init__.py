"""Out-of-distribution scores, and how well they tell two sets apart."""

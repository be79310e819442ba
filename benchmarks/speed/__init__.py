"""Speed and memory of SVE against strong contenders, as ratios measured in turns in one process: `python -m benchmarks.speed`."""

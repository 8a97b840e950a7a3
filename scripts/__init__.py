"""The demo, the soak and the benchmarks, as the shell scripts beside them start them: `python -m scripts.demo`."""

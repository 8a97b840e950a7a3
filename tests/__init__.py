"""The tests; what several of them share is in `tests.kit`, what scripts use too in `lab`."""

"""What the project's speed is measured with; run it from a checkout: python -m benchmarks (see docs/benchmarks.md)."""

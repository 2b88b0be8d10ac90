"""Side-by-side measurements of shardload and other loaders: `python -m benchmarks`."""

"""Files, memory, threads and progress. Private: only the package itself uses it."""

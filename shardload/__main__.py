"""`python -m shardload`: the command line."""

from shardload.cli import main

if __name__ == "__main__":
    main()

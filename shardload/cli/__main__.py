"""`python -m shardload.cli`: the command line without its installed script."""

from shardload.cli import main

if __name__ == "__main__":
    main()

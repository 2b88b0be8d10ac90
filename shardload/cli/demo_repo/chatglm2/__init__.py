"""The demo repo's own code: `repo.py` copies the two files beside this one; nothing imports them."""

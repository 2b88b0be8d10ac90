"""Pairing: whose key is whose, by shapes, numbers and words; no weight is read, and no model is known by name.

`Solution.of` runs the stages. A stage takes families of keys that are open on a `Board` and adds `Link`s; `Cure`
writes the links as rules of a key map.
"""

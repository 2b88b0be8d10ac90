"""`transformers.loss`: the losses that models since 4.46 take from their base class."""

"""A load: plan, judgement, stream, end state and report."""

"""A load: it is planned, judged, streamed, finished and reported."""

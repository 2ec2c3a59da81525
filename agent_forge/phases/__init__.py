"""The eight phases: rooms of one shape that talk only through checkpoint directories."""

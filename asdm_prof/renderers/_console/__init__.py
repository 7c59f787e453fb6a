"""The parts of what `console` prints; private to it."""

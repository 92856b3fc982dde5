"""Models that judge: one way to ask each kind of them, and to read its verdict."""

"""HTTP: helpers that routes are built from, and authentication."""

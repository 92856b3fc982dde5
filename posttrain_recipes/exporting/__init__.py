"""Trained weights in the forms that other programs read, and where to put them."""

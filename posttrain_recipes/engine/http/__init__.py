"""What routes are made of, and who may ask."""

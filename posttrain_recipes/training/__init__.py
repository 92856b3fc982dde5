"""The few loops that methods are written over, and what they share."""

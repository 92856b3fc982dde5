"""What a recipe says: its text with positions, its variants written out, its schema."""

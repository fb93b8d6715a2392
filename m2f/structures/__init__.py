"""What travels between rooms."""

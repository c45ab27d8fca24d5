"""The sentence model all-MiniLM-L6-v2."""

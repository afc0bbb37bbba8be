"""A stand-in for vLLM servers that breaks in every way that a test asks for."""

"""The engine that runs models in process with torch, for a laptop, a test or a demo."""

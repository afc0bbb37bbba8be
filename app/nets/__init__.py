"""Small networks that run beside a model, here and in a vLLM server."""

"""Code of ours that runs inside vLLM's processes, and the launcher that puts it there."""

"""What HTTP looks like: OpenAI's shapes in, Calls and Chunks inside."""

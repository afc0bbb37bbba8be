"""What engines on other machines have in common: HTTP, event streams, prompts, entropy bounds."""

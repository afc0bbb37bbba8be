"""Every metric that we define, how each is counted, and what several processes tell together."""

"""How the planner chooses: what it expects of each way to answer, and which one it takes."""

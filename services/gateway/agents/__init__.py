"""Agent types, their models, and agents: who does the tasks."""

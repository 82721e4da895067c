"""Projects: repositories, agents and settings that plans belong to."""

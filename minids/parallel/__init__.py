"""The model on several processes: pipeline schedules, their simulation, and their execution."""

"""What observes a run: its record, the terminal, views of it, and the watchdog."""

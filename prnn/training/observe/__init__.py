"""What observes a run: its record, the terminal, views of it, and who watches that it moves."""

"""What a user sees on the terminal: errors in one sentence, progress bars, tables."""

"""Tasks: what a user may type, how it becomes a prompt and worked steps, how an answer is checked. No torch here."""

"""The exact ids that the shipped models wrote before the house was rebuilt: every later step is held to them."""

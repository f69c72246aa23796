"""The exact ids that the shipped models wrote before the code was rearranged: every later step is held to them."""

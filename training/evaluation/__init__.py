"""How answers are decoded and scored."""

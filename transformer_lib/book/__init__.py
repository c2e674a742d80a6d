"""What the pages of the book need and do not explain: style, drawings, toys, checks."""

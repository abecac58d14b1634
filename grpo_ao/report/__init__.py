"""What a reader sees of a run or an evaluation: figures, tables, the page, the card."""

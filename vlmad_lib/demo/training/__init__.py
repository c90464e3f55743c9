"""What makes the demo weights and their cards: nothing of the workbook imports it."""

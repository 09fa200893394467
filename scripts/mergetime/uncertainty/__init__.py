"""How far test scores can be trusted: errors over items, paired comparisons, and what a picked maximum is worth."""

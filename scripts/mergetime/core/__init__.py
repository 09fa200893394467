"""What everything rests on: errors in one line, records beside artifacts, writing whole files, locks, tables, words."""

"""What everything rests on: errors in one line, the record beside every artifact, locks, tables, words."""

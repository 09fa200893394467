"""Tables and figures, drawn from the tidy files alone: no model is opened here."""

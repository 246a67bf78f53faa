"""What a row of metrics can show that calls for another option: each returns the text for the user, or None."""

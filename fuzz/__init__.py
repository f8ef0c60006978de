"""Files of strangers, changed at random: only errors that a user can mend may come of them."""

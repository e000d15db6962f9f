"""Methods that evaluate losses after a tentative step."""

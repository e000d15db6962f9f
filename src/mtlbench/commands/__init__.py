"""What each word of the command line does; imported only when it is used."""

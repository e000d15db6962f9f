"""One file per method: its name is the file's name, and it holds one subclass of `MTLMethod` or `Balancer`."""

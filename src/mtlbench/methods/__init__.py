"""The shipped methods, one per file. A file has the method's name and one subclass of `MTLMethod` or `Balancer`."""

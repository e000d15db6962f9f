"""The mathematics of balancing rules, shared by the methods that use them."""

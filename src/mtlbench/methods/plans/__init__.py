"""Methods that train several runs according to a plan."""

"""What data modules of simulated control share: demonstrations of scripted experts, and a world of point masses."""

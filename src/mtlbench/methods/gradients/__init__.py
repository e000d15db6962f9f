"""Methods that combine task gradients."""

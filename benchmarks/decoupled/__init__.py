"""What it brings that the modules do not wait for one another: decoupled against coupled."""

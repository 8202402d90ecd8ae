"""The commands for people that are no stages."""

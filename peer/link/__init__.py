"""All that speaks to the coordinator. Knows neither the swarm nor the trainer."""

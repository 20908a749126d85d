"""What chapters measure: on trained models, on a router without a model, and on ways to run the experts."""

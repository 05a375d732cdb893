"""What every room agrees on: op specification, profiles, quantization, ranges. Imports no room."""

"""What is in a mask, how masks differ, and how far a mask hangs on the data it was calibrated on."""

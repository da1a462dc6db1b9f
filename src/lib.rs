//! d2o: fine-tune, export, run and measure one-step image generators.

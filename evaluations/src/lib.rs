//! Metrics of image generators: FID, Inception Score, precision/recall, KID.
